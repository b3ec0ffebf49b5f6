package api

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// maxVariableBytes bounds the name of an environment variable.
const maxVariableBytes = 128

var errVariable = errors.New("not a variable name: it is a letter or _, then letters, digits and _, 128 at most")

// CheckVariable reports why a lease can't set the environment variable of that
// name: it isn't a name, or whoever sets it runs code in the command or gets
// more than the lease. Case doesn't count, since on Windows it doesn't. The
// error holds the name only if it is on the list.
//
// It is a guard against mistakes of the broker's operator, and against names that
// a caller gives to references; in the client it is one against a broker that
// oversteps. The list can't be complete: any program may read what it likes from
// its environment.
func CheckVariable(name string) error {
	if name == "" || len(name) > maxVariableBytes {
		return errVariable
	}
	for i := range len(name) {
		c := name[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return errVariable
		}
	}
	upper := strings.ToUpper(name)
	if slices.Contains(refusedVariables(), upper) {
		return fmt.Errorf("the variable %s decides what a command runs or may get, so no lease can set it", upper)
	}
	for _, prefix := range refusedVariablePrefixes() {
		if strings.HasPrefix(upper, prefix) {
			return fmt.Errorf("variables that begin with %s decide what a command runs or may get, so no lease can set them", prefix)
		}
	}
	return nil
}

// refusedVariables are in upper case.
func refusedVariables() []string {
	return []string{
		// Which programs and files are found.
		"PATH", "PATHEXT", "HOME", "USERPROFILE", "XDG_CONFIG_HOME", "SHELL", "COMSPEC", "CDPATH",
		// Shells.
		"BASH_ENV", "ENV", "IFS", "PS4", "PROMPT_COMMAND", "SHELLOPTS", "BASHOPTS", "ZDOTDIR",
		// The C library, and the one for TLS.
		"GCONV_PATH", "LOCPATH", "NLSPATH", "GLIBC_TUNABLES", "MALLOC_CHECK_", "OPENSSL_CONF", "OPENSSL_ENGINES", "OPENSSL_MODULES",
		// Interpreters and virtual machines.
		"NODE_OPTIONS", "NODE_PATH", "NODE_EXTRA_CA_CERTS",
		"NPM_CONFIG_SCRIPT_SHELL", "NPM_CONFIG_NODE_OPTIONS", "NPM_CONFIG_USERCONFIG", "NPM_CONFIG_GLOBALCONFIG",
		"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONUSERBASE", "PYTHONBREAKPOINT",
		"PERL5OPT", "PERL5LIB", "PERL5DB", "PERLLIB",
		"RUBYOPT", "RUBYLIB", "GEM_HOME", "GEM_PATH", "BUNDLE_GEMFILE", "PHPRC", "PHP_INI_SCAN_DIR", "LUA_INIT", "LUA_PATH", "LUA_CPATH",
		"JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "JAVA_OPTS", "CLASSPATH", "MAVEN_OPTS", "GRADLE_OPTS",
		"DOTNET_STARTUP_HOOKS", "DOTNET_ADDITIONAL_DEPS",
		// Build tools and editors.
		"MAKEFLAGS", "GNUMAKEFLAGS", "MAKEFILES", "GOFLAGS", "GOENV", "RUSTFLAGS", "RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CC", "CXX", "LD",
		"EDITOR", "VISUAL", "PAGER", "BROWSER", "LESSOPEN", "LESSCLOSE", "MANPAGER",
		// git and ssh.
		"GIT_SSH", "GIT_SSH_COMMAND", "GIT_EXEC_PATH", "GIT_EDITOR", "GIT_SEQUENCE_EDITOR", "GIT_PAGER", "GIT_ASKPASS",
		"GIT_PROXY_COMMAND", "GIT_EXTERNAL_DIFF", "GIT_TEMPLATE_DIR", "GIT_DIR", "GIT_WORK_TREE", "SSH_ASKPASS",
		// The CI's command files, and RunEnv's own identity.
		"GITHUB_ENV", "GITHUB_PATH", "GITHUB_OUTPUT", "GITHUB_STATE", "GITHUB_STEP_SUMMARY",
		"RUNENV_BROKER", "RUNENV_CA_FILE", "RUNENV_ID_TOKEN",
	}
}

func refusedVariablePrefixes() []string {
	return []string{"LD_", "DYLD_", "BASH_FUNC_", "GIT_CONFIG", "COR_", "CORECLR_", "ACTIONS_ID_TOKEN_REQUEST_", "RUNENV_ID_TOKEN_"}
}
