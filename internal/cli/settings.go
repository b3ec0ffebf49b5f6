package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/spf13/pflag"

	"github.com/runenv/action/internal/ci"
)

const (
	varBroker = "RUNENV_BROKER"
	varRole   = "RUNENV_ROLE"
	varLeases = "RUNENV_LEASES"
	varCAFile = "RUNENV_CA_FILE"

	fileName     = ".runenv.yaml"
	maxFileBytes = 64 << 10
	maxCABytes   = 1 << 20
)

// settings are what flags, variables and the file come to.
type settings struct {
	broker, role, caFile string
	leases               []string

	// refusedBroker says that the file names a broker which doesn't count.
	refusedBroker bool
}

// flagVariables are the flags that a variable can stand in for, so that a
// job's definition can set them for every `runenv run` of the job. Each is
// RUNENV_ and the flag's name. Lists have lines or semicolons between.
var flagVariables = [...]string{
	"pristine", "only", "deny", "keep-existing", "files", "isolate", "scan", "scan-path", "scan-ignore", "on-exit", "serve",
}

func variableFor(flag string) string {
	return "RUNENV_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// fromVariables sets the flags that weren't given.
func fromVariables(f *pflag.FlagSet, getenv func(string) string) error {
	for _, name := range flagVariables {
		flag, variable := f.Lookup(name), variableFor(name)
		if flag.Changed {
			continue
		}
		if err := setFlag(flag, getenv(variable)); err != nil {
			return &settingError{fmt.Sprintf("%s: %v", variable, err), ""}
		}
	}
	return nil
}

// setFlag gives a flag a value from elsewhere than the command line: of a list
// several. Nothing but white space is nothing.
func setFlag(flag *pflag.Flag, text string) error {
	text = strings.TrimSpace(text)
	items := []string{text}
	switch flag.Value.Type() {
	case "stringArray":
		items = strings.FieldsFunc(text, func(r rune) bool { return r == ';' || r == '\n' || r == '\r' })
	case "bool":
		switch text {
		case "", "true", "True", "TRUE", "false", "False", "FALSE": // YAML's, as in GitHub's own actions
		default:
			return fmt.Errorf("it is %q, and not true or false", text)
		}
	}
	for _, item := range items {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		if err := flag.Value.Set(item); err != nil {
			return err
		}
	}
	return nil
}

// brokerFlags are those by which a command finds the broker.
func brokerFlags(f *pflag.FlagSet, s *settings) {
	f.StringVar(&s.broker, "broker", "", "the broker's `URL`, as its configuration has it ($"+varBroker+")")
	f.StringVar(&s.caFile, "ca-file", "", "PEM `FILE` of the only CAs to trust for the broker ($"+varCAFile+")")
}

// resolve fills what no flag has set: from a variable, else from the file in
// the working directory.
func (s *settings) resolve(env Env) error {
	fill := func(to *string, value string) {
		if *to == "" {
			*to = value
		}
	}
	fill(&s.broker, env.Getenv(varBroker))
	fill(&s.role, env.Getenv(varRole))
	fill(&s.caFile, env.Getenv(varCAFile))
	if len(s.leases) == 0 {
		var err error
		if s.leases, err = splitLeases(env.Getenv(varLeases)); err != nil {
			return fmt.Errorf("%s: %w", varLeases, err)
		}
	}
	file, err := readFile(env.Dir)
	if err != nil {
		return err
	}
	fill(&s.role, file.role)
	if len(s.leases) == 0 {
		s.leases = file.leases
	}
	// The file comes with the code, and whoever opens a pull request writes
	// both: in CI it mustn't choose whom the job's token is sent to (T28).
	if s.broker == "" && file.broker != "" && ci.Kind(env.Getenv) != "" {
		s.refusedBroker = true
		return nil
	}
	fill(&s.broker, file.broker)
	return nil
}

// complete refuses settings that no session can be had with.
func (s *settings) complete() error {
	switch {
	case s.refusedBroker:
		return &settingError{fileName + " can't set the broker in CI", "set " + varBroker + " or --broker in the job's definition: what a pull request can edit mustn't choose where the job's token goes"}
	case s.broker == "":
		return &settingError{"no broker given", "set --broker (the action's `broker:`) or " + varBroker + " to the broker's URL"}
	case s.role == "":
		return &settingError{"no role given", "set --role or " + varRole + " (the action's `role:`), or `role:` in " + fileName}
	}
	var err error
	s.leases, err = readLeases(s.leases)
	return err
}

// ca reads the CA file, if there is one.
func (s *settings) ca() ([]byte, error) {
	if s.caFile == "" {
		return nil, nil
	}
	pem, err := readBounded(s.caFile, maxCABytes)
	if err != nil {
		return nil, fmt.Errorf("reading the CA file: %w", err)
	}
	return pem, nil
}

type settingError struct{ what, hint string }

func (e *settingError) Error() string { return e.what }

// Hint names the cure.
func (e *settingError) Hint() string { return e.hint }

func readBounded(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // nothing was written
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(content)) > limit {
		return nil, fmt.Errorf("%s has over %d bytes", name, limit)
	}
	return content, nil
}

// readFile reads the settings of a working directory, if it has any.
func readFile(dir string) (settings, error) {
	name := filepath.Join(dir, fileName)
	fi, err := os.Stat(name)
	switch {
	case errors.Is(err, os.ErrNotExist) || dir == "":
		return settings{}, nil
	case err != nil:
		return settings{}, fmt.Errorf("reading settings: %w", err)
	case !fi.Mode().IsRegular():
		return settings{}, errors.New(fileName + " isn't a regular file")
	}
	content, err := readBounded(name, maxFileBytes)
	if err != nil {
		return settings{}, fmt.Errorf("reading settings: %w", err)
	}
	return parseFile(content)
}

// parseFile takes no more than it must: one mapping of broker, role and
// leases. Errors say where, and show nothing of the file.
func parseFile(content []byte) (settings, error) {
	var s settings
	// The parser lets control characters pass, and drops some.
	text := string(content)
	if i := strings.IndexFunc(text, func(r rune) bool {
		return r == utf8.RuneError || unicode.IsControl(r) && r != '\t' && r != '\n' && r != '\r'
	}); i >= 0 {
		return s, badFile(1+strings.Count(text[:i], "\n"), "a character that isn't text")
	}
	file, err := parser.ParseBytes(content, 0)
	if err != nil {
		line := 0
		if ye, ok := errors.AsType[yaml.Error](err); ok && ye.GetToken() != nil {
			line = ye.GetToken().Position.Line
		}
		return s, badFile(line, "it isn't well-formed YAML")
	}
	var docs []ast.Node
	for _, doc := range file.Docs {
		if doc.Body != nil {
			docs = append(docs, doc.Body)
		}
	}
	switch {
	case len(docs) == 0:
		return s, nil
	case len(docs) > 1:
		return s, badFile(lineOf(docs[1]), "it has a second document")
	}
	root, ok := docs[0].(*ast.MappingNode)
	if !ok {
		return s, badFile(lineOf(docs[0]), "it isn't a mapping")
	}
	seen := map[string]bool{}
	for _, entry := range root.Values {
		key, ok := entry.Key.(*ast.StringNode)
		if !ok || !slices.Contains([]string{"broker", "role", "leases"}, key.Value) {
			return s, badFile(lineOf(entry.Key), "a key that isn't broker, role or leases")
		}
		if seen[key.Value] {
			return s, badFile(lineOf(key), "a key that stands twice: "+key.Value)
		}
		seen[key.Value] = true
		switch key.Value {
		case "leases":
			s.leases, err = stringList(entry.Value)
		case "broker":
			s.broker, err = stringOf(entry.Value)
		case "role":
			s.role, err = stringOf(entry.Value)
		}
		if err != nil {
			return s, err
		}
	}
	return s, nil
}

func stringList(n ast.Node) ([]string, error) {
	list, ok := n.(*ast.SequenceNode)
	if !ok {
		return nil, badFile(lineOf(n), "leases isn't a list")
	}
	var out []string
	for _, item := range list.Values {
		s, err := stringOf(item)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

func stringOf(n ast.Node) (string, error) {
	s, ok := n.(*ast.StringNode)
	if !ok || s.Value == "" {
		return "", badFile(lineOf(n), "a value that isn't a string; quote it if it is meant to be one")
	}
	return s.Value, nil
}

func lineOf(n ast.Node) int {
	if n == nil || n.GetToken() == nil || n.GetToken().Position == nil {
		return 0
	}
	return n.GetToken().Position.Line
}

func badFile(line int, why string) error {
	return &settingError{fmt.Sprintf("%s line %d: %s", fileName, line, why), "it may hold `broker:`, `role:` and `leases:`, a list of names and references"}
}
