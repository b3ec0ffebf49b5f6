package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"unicode"
)

// scriptPath stands for the script's path in a shell's command.
const scriptPath = "{0}"

// A shell is how the runner starts one for a step.
type shell struct {
	args      []string
	extension string
}

// errQuote says that a shell's command line has a quote without its end.
var errQuote = errors.New("a quote without its end")

// shellFor has the runner's own words for its shells.
func shellFor(env Env, name string) (shell, error) {
	switch name {
	case "":
		switch {
		case runtime.GOOS == "windows":
			return shellFor(env, "pwsh")
		case inPath(env, "bash"):
			// With -e alone: so the runner does where nothing is said.
			return shell{[]string{"bash", "-e", scriptPath}, ".sh"}, nil
		}
		return shellFor(env, "sh")
	case "bash":
		return shell{[]string{"bash", "--noprofile", "--norc", "-e", "-o", "pipefail", scriptPath}, ".sh"}, nil
	case "sh":
		return shell{[]string{"sh", "-e", scriptPath}, ".sh"}, nil
	case "pwsh", "powershell":
		return shell{[]string{name, "-command", ". '" + scriptPath + "'"}, ".ps1"}, nil
	case "python":
		return shell{[]string{"python", scriptPath}, ".py"}, nil
	}
	args, err := splitCommand(name)
	if err != nil {
		return shell{}, &settingError{fmt.Sprintf("the input `shell` can't be read: %v", err), ""}
	}
	if len(args) < 2 || !strings.Contains(name, scriptPath) {
		return shell{}, &settingError{fmt.Sprintf("the input `shell` is %q", name), "it is bash, sh, pwsh, powershell, python, or a command with " + scriptPath + " where the script's path belongs"}
	}
	return shell{args, ""}, nil
}

// splitCommand splits at white space that isn't between double quotes.
func splitCommand(s string) ([]string, error) {
	var args []string
	var arg strings.Builder
	quoted, any := false, false
	for _, c := range s {
		switch {
		case c == '"':
			quoted, any = !quoted, true
		case unicode.IsSpace(c) && !quoted:
			if any {
				args = append(args, arg.String())
			}
			arg.Reset()
			any = false
		default:
			arg.WriteRune(c)
			any = true
		}
	}
	if quoted {
		return nil, errQuote
	}
	if any {
		args = append(args, arg.String())
	}
	return args, nil
}

// writeScript leaves the script where the runner leaves those of its own
// steps, readable by this user alone, and returns the command that runs it. No
// lease is in it: it comes from the workflow.
func writeScript(env Env, shellName, script string) (command []string, remove func(), err error) {
	sh, err := shellFor(env, shellName)
	if err != nil {
		return nil, nil, err
	}
	dir := env.Getenv("RUNNER_TEMP")
	if dir == "" {
		dir = os.TempDir()
	}
	f, err := os.CreateTemp(dir, "runenv-*"+sh.extension)
	if err != nil {
		return nil, nil, fmt.Errorf("writing the script: %w", err)
	}
	remove = func() { _ = os.Remove(f.Name()) } // the runner empties the folder besides
	_, err = f.WriteString(scriptText(script, sh.extension))
	if err = errors.Join(err, f.Close()); err != nil {
		remove()
		return nil, nil, fmt.Errorf("writing the script: %w", err)
	}
	path := filepath.ToSlash(f.Name())
	command = make([]string, len(sh.args))
	for i, arg := range sh.args {
		if sh.extension == ".ps1" {
			path = strings.ReplaceAll(filepath.ToSlash(f.Name()), "'", "''")
		}
		command[i] = strings.ReplaceAll(arg, scriptPath, path)
	}
	return command, remove, nil
}

// scriptText is the script as the runner writes it: PowerShell doesn't stop at
// errors, nor end with a command's status, unless told to.
func scriptText(script, extension string) string {
	if extension == ".ps1" {
		script = "$ErrorActionPreference = 'stop'\n" + script + "\nif ((Test-Path -LiteralPath variable:\\LASTEXITCODE)) { exit $LASTEXITCODE }"
	}
	script = strings.ReplaceAll(script, "\r\n", "\n")
	if runtime.GOOS == "windows" {
		script = strings.ReplaceAll(script, "\n", "\r\n")
	}
	return script
}

func inPath(env Env, name string) bool {
	for _, dir := range filepath.SplitList(env.Getenv("PATH")) {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return true
		}
	}
	return false
}
