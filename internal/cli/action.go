package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/runenv/action/internal/gha"
)

// inputPrefix begins the variables in which the runner hands over inputs.
const inputPrefix = "INPUT_"

// actionInputs are those that action.yml declares. The launcher reads version
// and binary.
var actionInputs = [...]string{
	"broker", "role", "leases", "run", "shell", "working-directory", "if-no-token",
	"pass-ci-token", "pristine", "only", "deny", "keep-existing", "files", "isolate", "scan", "scan-path", "scan-ignore", "on-exit", "serve",
	"mask", "summary", "version", "binary",
}

// actionCommand is what the GitHub Action's launcher becomes. It is hidden:
// only a runner gives it what it needs.
func (a *app) actionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:    "action",
		Short:  "Be the GitHub Action",
		Hidden: true,
		Args:   noSuchCommand,
		RunE:   func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var spawned bool
	main := &cobra.Command{
		Use:   "main",
		Short: "Be the action's main step",
		Args:  noArguments,
		RunE:  func(*cobra.Command, []string) error { return a.actionMain(spawned) },
	}
	main.Flags().BoolVar(&spawned, "spawned", false, "the launcher couldn't become this process, and lives on")
	post := &cobra.Command{
		Use:   "post",
		Short: "Be the action's post step",
		Args:  noArguments,
		RunE:  func(*cobra.Command, []string) error { return a.actionPost() },
	}
	cmd.AddCommand(main, post)
	return cmd
}

// asAction makes a step of this process, whose errors then are annotations.
func (a *app) asAction() (*actionStep, error) {
	if a.env.Getenv("GITHUB_ACTIONS") != "true" {
		return nil, &settingError{"this command is the GitHub Action's own, and no runner of GitHub's kind started it", "elsewhere: runenv run -- COMMAND"}
	}
	makeBlocking(a.env.Stdin, a.env.Stdout, a.env.Stderr)
	getenv := a.env.Getenv
	step := &actionStep{
		say:    a.say,
		stdout: a.env.Stdout,
		getenv: getenv,
		runner: gha.New(gha.Config{Getenv: getenv, Commands: a.env.Stderr}),
		masks:  gha.New(gha.Config{Getenv: getenv, Commands: a.env.Stdout}),
	}
	a.say.runner = step.runner
	return step, nil
}

// actionMain is the action's main step.
func (a *app) actionMain(spawned bool) error {
	step, err := a.asAction()
	if err != nil {
		return err
	}
	step.spawned = spawned
	in, err := readInputs(step.runner, a.env)
	if err != nil {
		return err
	}
	if in.script == "" {
		return a.setUp(step, in)
	}
	if step.workdir, err = workingDirectory(a.env, in.workingDirectory); err != nil {
		return err
	}
	step.summary = in.summary
	step.mask = in.mask
	a.env.Environ = stepEnvironment(a.env.Environ, in.passCIToken)
	if step.workdir != "" {
		a.env.Dir = step.workdir
	}
	command, remove, err := writeScript(a.env, in.shell, in.script)
	if err != nil {
		return err
	}
	defer remove()
	o := in.flags
	o.settings = settings{broker: in.broker, role: in.role, leases: in.leases}
	o.ifNoToken, o.passCIToken = in.ifNoToken, in.passCIToken
	o.verbose, o.debug = true, a.env.Getenv("RUNNER_DEBUG") == "1"
	o.step = step
	return a.run(o, command)
}

// setUp readies later steps for `runenv run`: the program is found, and told
// whom to ask. No lease is taken.
func (a *app) setUp(step *actionStep, in inputs) error {
	for name, given := range map[string]bool{
		"shell": in.shell != "", "working-directory": in.workingDirectory != "", "pass-ci-token": in.passCIToken,
	} {
		if given {
			return &settingError{"the input `" + name + "` stands without `run`", "give `run:` a script, or leave out what is about it: without `run:` the action puts runenv on the PATH of later steps"}
		}
	}
	_, err := a.detect()
	if err != nil && in.ifNoToken == "fail" {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	if name := filepath.Base(exe); strings.TrimSuffix(name, ".exe") != "runenv" {
		return &settingError{fmt.Sprintf("later steps can't find a program called %q as runenv", name), "name the file that `binary:` points to runenv"}
	}
	if err := step.runner.AddPath(filepath.Dir(exe)); err != nil {
		return err
	}
	for _, v := range []struct{ name, value string }{
		{varBroker, in.broker}, {varRole, in.role}, {varLeases, strings.Join(in.leases, " ")},
	} {
		if v.value == "" {
			continue
		}
		if err := step.runner.SetEnv(v.name, v.value); err != nil {
			return err
		}
	}
	for _, name := range flagVariables {
		if text, given := in.given[name]; given {
			if err := step.runner.SetEnv(variableFor(name), text); err != nil {
				return err
			}
		}
	}
	_, none := a.detect()
	if err := step.skipped(none != nil && in.ifNoToken == "skip"); err != nil {
		return err
	}
	a.say.note("runenv is on the PATH of later steps; without `run:` this step takes no lease")
	return nil
}

// inputs are the action's, as the workflow has them.
type inputs struct {
	broker, role, script, shell, workingDirectory, ifNoToken string
	leases                                                   []string
	passCIToken, mask, summary                               bool

	flags runOptions        // as the inputs that have a flag's name set them
	given map[string]string // those inputs that aren't a flag's default
}

func readInputs(r *gha.Runner, env Env) (inputs, error) {
	if err := onlyKnownInputs(env.Environ); err != nil {
		return inputs{}, err
	}
	in := inputs{
		broker:           r.Input("broker"),
		role:             r.Input("role"),
		script:           env.Getenv(inputPrefix + "RUN"), // white space may mean something in it
		shell:            r.Input("shell"),
		workingDirectory: r.Input("working-directory"),
		ifNoToken:        r.Input("if-no-token"),
	}
	var err error
	if in.leases, err = splitLeases(r.Input("leases")); err != nil {
		return inputs{}, fmt.Errorf("the input `leases`: %w", err)
	}
	if in.script != "" && strings.TrimSpace(in.script) == "" {
		return inputs{}, &settingError{"the input `run` holds white space and nothing else", "give it a script, or leave it out"}
	}
	switch in.ifNoToken {
	case "":
		in.ifNoToken = "fail"
	case "fail", "skip", "run":
	default:
		return inputs{}, &settingError{fmt.Sprintf("the input `if-no-token` is %q, and not fail, skip or run", in.ifNoToken), ""}
	}
	for _, b := range []struct {
		name   string
		to     *bool
		preset bool
	}{
		{"pass-ci-token", &in.passCIToken, false}, {"mask", &in.mask, true}, {"summary", &in.summary, true},
	} {
		switch text := r.Input(b.name); text {
		case "":
			*b.to = b.preset
		case "true", "True", "TRUE": // YAML's, as in GitHub's own actions
			*b.to = true
		case "false", "False", "FALSE":
			*b.to = false
		default:
			return inputs{}, &settingError{fmt.Sprintf("the input `%s` is %q, and not true or false", b.name, text), ""}
		}
	}
	return in, in.readFlags(r)
}

// readFlags reads the inputs that have the names of flags, and mean the same.
func (in *inputs) readFlags(r *gha.Runner) error {
	f := pflag.NewFlagSet("inputs", pflag.ContinueOnError)
	in.flags.addFlags(f)
	in.given = map[string]string{}
	for _, name := range flagVariables {
		flag, text := f.Lookup(name), r.Input(name)
		if err := setFlag(flag, text); err != nil {
			return &settingError{fmt.Sprintf("the input `%s`: %v", name, err), ""}
		}
		if text != "" && flag.Value.String() != flag.DefValue {
			in.given[name] = text
		}
	}
	if err := in.flags.check(""); err != nil {
		name, problem, _ := strings.Cut(strings.TrimPrefix(err.Error(), "--"), " ")
		return &settingError{fmt.Sprintf("the input `%s` %s", strings.TrimSuffix(name, ":"), problem), ""}
	}
	return nil
}

// onlyKnownInputs refuses what action.yml doesn't declare: the runner only
// warns, and a step that says `lease:` for `leases:` would get all of them.
func onlyKnownInputs(environ []string) error {
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		name, ok := strings.CutPrefix(name, inputPrefix)
		if ok && !slices.Contains(actionInputs[:], strings.ToLower(name)) {
			return &settingError{fmt.Sprintf("the action has no input `%s`", strings.ToLower(name)), "it has: " + strings.Join(actionInputs[:], ", ")}
		}
	}
	return nil
}

// workingDirectory is the absolute path of the input; "" for none.
func workingDirectory(env Env, input string) (string, error) {
	if input == "" {
		return "", nil
	}
	dir := input
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(env.Dir, dir)
	}
	fi, err := os.Stat(dir)
	if err != nil || !fi.IsDir() {
		return "", &settingError{fmt.Sprintf("the working directory %q isn't there", input), "it is a folder of the workspace; does the job check out its repository first?"}
	}
	return dir, nil
}

// stepEnvironment is what a `run:` step of the runner itself would have had,
// of an action's environment: no inputs, and none of the keys to caches and
// artifacts, which only actions get (T29). The post step's notes are ours.
func stepEnvironment(environ []string, passCIToken bool) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "GITHUB_STATE":
			return true
		case "ACTIONS_RUNTIME_TOKEN", "ACTIONS_RUNTIME_URL", "ACTIONS_CACHE_URL", "ACTIONS_RESULTS_URL":
			return !passCIToken
		}
		return strings.HasPrefix(name, inputPrefix)
	})
}
