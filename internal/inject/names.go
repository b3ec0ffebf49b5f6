package inject

import (
	"fmt"
	"slices"
	"strings"
)

// CheckName says whether a lease may set a variable of this name: it is made
// of letters, digits and underscores, doesn't begin with a digit, and isn't
// one by which programs run code, choose what they run, or are steered by the
// CI's runner. Upper and lower case are the same, as they are to Windows and
// to programs that read both (http_proxy). The error is an [*Error].
func CheckName(name string) error {
	if err := checkName(name, ""); err != nil {
		return err
	}
	return nil
}

func checkName(name, lease string) *Error {
	if !wellFormed(name) {
		return &Error{name, lease, "its name isn't made of letters, digits and underscores, or begins with a digit",
			"choose a name such as DB_PASSWORD in the broker's file"}
	}
	upper := strings.ToUpper(name)
	if _, ok := slices.BinarySearch(allowedNames, upper); ok {
		return nil
	}
	_, refused := slices.BinarySearch(refusedNames, upper)
	for _, prefix := range refusedPrefixes {
		refused = refused || strings.HasPrefix(upper, prefix)
	}
	if refused {
		return &Error{name, lease, "a program could be made to run code by it, so no lease may set it",
			fmt.Sprintf("map the lease to another name in the broker's file, and have the command itself set %s", name)}
	}
	return nil
}

func wellFormed(name string) bool {
	for i := range len(name) {
		c := name[i]
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}

// refusedPrefixes are families of which any member steers code.
var refusedPrefixes = []string{
	"ACTIONS_",      // GitHub's runner and its services
	"BASH_FUNC_",    // exported functions
	"CARGO_BUILD_",  // compiler and its wrapper
	"CARGO_TARGET_", // linker, runner
	"CORECLR_",      // .NET's profilers
	"COR_",          // the same, older
	"DOTNET_",       // start-up hooks
	"DYLD_",         // macOS's linker
	"GITHUB_",       // command files, and what scripts trust
	"GIT_",          // ssh, editor, pager, hooks by GIT_CONFIG_*
	"LD_",           // Linux's linker
	"OPENSSL_",      // configuration, engines
	"PSMODULE",      // PowerShell's modules
	"PYTHON",        // modules, start-up files, what is run at exit
	"RUNENV_",       // ourselves
	"RUNNER_",       // GitHub's runner
	"SSH_ASKPASS",   // a program to run
	"TF_CLI_",       // arguments, configuration
	"_JAVA_",        // options
}

// allowedNames are members of those families that hold a credential and
// nothing else. Sorted.
var allowedNames = []string{"GITHUB_PAT", "GITHUB_TOKEN", "GIT_PASSWORD", "GIT_TOKEN", "GIT_USERNAME"}

// refusedNames are single names. Sorted.
var refusedNames = []string{
	"AWKLIBPATH", "AWKPATH", "BASHOPTS", "BASH_ENV", "BASH_LOADABLES_PATH", "BROWSER", "BUNDLE_CONFIG",
	"BUNDLE_GEMFILE", "BUNDLE_PATH", "BUN_OPTIONS", "CARGO_HOME", "CC", "CDPATH", "CLASSPATH", "COMPOSER",
	"COMPOSER_HOME", "COMSPEC", "CVS_RSH", "CXX", "EDITOR", "ELECTRON_RUN_AS_NODE", "ENV", "ERL_AFLAGS",
	"ERL_FLAGS", "ERL_LIBS", "ERL_ZFLAGS", "EXINIT", "FPATH", "GCC_EXEC_PREFIX", "GCONV_PATH", "GEM_HOME",
	"GEM_PATH", "GH_BROWSER", "GH_EDITOR", "GH_PAGER", "GLOBIGNORE", "GOCACHEPROG", "GOENV", "GOFLAGS", "GOROOT",
	"GOTOOLCHAIN", "GRADLE_OPTS", "GTK_MODULES", "HOME", "HOSTALIASES", "IFS", "JAVA_HOME", "JAVA_OPTS",
	"JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "JULIA_LOAD_PATH", "KRB5_CONFIG", "KUBE_EDITOR", "LESSCLOSE",
	"LESSOPEN", "LOCPATH", "LUA_CPATH", "LUA_INIT", "LUA_PATH", "MAILCAPS", "MAKEFILES", "MAKEFLAGS", "MANPAGER",
	"MAVEN_ARGS", "MAVEN_OPTS", "NIX_PATH", "NLSPATH", "NODE_OPTIONS", "NODE_PATH", "NPM_CONFIG_EDITOR",
	"NPM_CONFIG_GIT", "NPM_CONFIG_GLOBALCONFIG", "NPM_CONFIG_INIT_MODULE", "NPM_CONFIG_NODE_GYP",
	"NPM_CONFIG_NODE_OPTIONS", "NPM_CONFIG_PREFIX", "NPM_CONFIG_SCRIPT_SHELL", "NPM_CONFIG_SHELL",
	"NPM_CONFIG_USERCONFIG", "NPM_CONFIG_VIEWER", "PAGER", "PATH", "PATHEXT", "PERL5DB", "PERL5LIB", "PERL5OPT",
	"PERL5SHELL", "PERLIO", "PERLLIB", "PERL_MB_OPT", "PERL_MM_OPT", "PHPRC", "PHP_INI_SCAN_DIR",
	"PIP_CONFIG_FILE", "PIP_PREFIX", "PIP_PYTHON", "PIP_TARGET", "PROMPT_COMMAND", "PS0", "PS1", "PS2", "PS4",
	"PSQLRC", "PSQL_EDITOR", "PSQL_PAGER", "QT_PLUGIN_PATH", "RIPGREP_CONFIG_PATH", "RSYNC_RSH", "RUBYLIB",
	"RUBYOPT", "RUSTC", "RUSTC_WORKSPACE_WRAPPER", "RUSTC_WRAPPER", "RUSTDOC", "RUSTFLAGS", "R_ENVIRON",
	"R_ENVIRON_USER", "R_HOME", "R_LIBS", "R_PROFILE", "R_PROFILE_USER", "SHELL", "SHELLOPTS", "SUDO_ASKPASS",
	"SVN_EDITOR", "SVN_SSH", "SYSTEMD_EDITOR", "SYSTEMD_PAGER", "SYSTEMROOT", "TAR_OPTIONS", "TCLLIBPATH",
	"TMPDIR", "UV_CONFIG_FILE", "UV_PYTHON", "VIMINIT", "VISUAL", "WINDIR", "XDG_CONFIG_HOME", "XDG_DATA_DIRS",
	"YARN_IGNORE_PATH", "YARN_PLUGINS", "YARN_RC_FILENAME", "ZDOTDIR",
}
