package shape

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"text/template/parse"

	"github.com/runenv/action/secret"
)

const (
	maxTemplateBytes = 4096
	// maxCalls bounds a template's function calls, and so how much it can blow
	// up what it is given.
	maxCalls = 64
)

// A Template is text with the credential's fields in its holes:
//
//	postgres://{{.username | urlquery}}:{{.password | urlquery}}@db.example.com/shop
//
// It is a small part of text/template's language: fields ({{.name}}, or {{index
// . "na.me"}}, which also takes a JSON pointer), texts in quotes, and pipelines
// of urlquery, json, base64, hex, lower, upper and trim. There are no
// conditions, loops, variables or templates in it.
type Template struct {
	text  string
	parts []operand
}

// An operand is a text, a field, or a function of another operand.
type operand struct {
	literal  string
	field    string
	function func(string) string
	of       *operand
	// transforms: what the function makes can't be known for what it was.
	transforms bool
}

// functions of templates, each of one text.
func function(name string) func(string) string {
	switch name {
	case "urlquery":
		// Right for every part of a URL, also for user and password, where a +
		// would stand for itself.
		return func(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
	case "json":
		return func(s string) string {
			b, _ := marshal(s) // a string always can be
			return string(b)
		}
	case "base64":
		return func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	case "hex":
		return func(s string) string { return hex.EncodeToString([]byte(s)) }
	case "lower":
		return strings.ToLower
	case "upper":
		return strings.ToUpper
	case "trim":
		return strings.TrimSpace
	}
	return nil
}

func functionNames() []string {
	return []string{"urlquery", "json", "base64", "hex", "lower", "upper", "trim"}
}

var errTemplate = hinted{
	errors.New("a template with more than fields and pipelines of " + strings.Join(functionNames(), ", ")),
	`write fields as {{.name}} or {{index . "na.me"}}, and functions like {{.name | urlquery}}`,
}

// ParseTemplate reads a template. Its error holds no part of the text.
func ParseTemplate(text string) (*Template, error) {
	if len(text) > maxTemplateBytes {
		return nil, fmt.Errorf("a template of over %d bytes", maxTemplateBytes)
	}
	// The parser wants to know which functions there are, and index.
	known := map[string]any{"index": true}
	for _, name := range functionNames() {
		known[name] = true
	}
	trees, err := parse.Parse("", text, "{{", "}}", known)
	if err != nil { // whose text shows the template's
		return nil, errTemplate
	}
	root := trees[""]
	if len(trees) != 1 && text != "" || root == nil || root.Root == nil {
		return nil, errTemplate
	}
	c := templateCompiler{}
	t := &Template{text: text}
	for _, n := range root.Root.Nodes {
		switch n := n.(type) {
		case *parse.TextNode:
			t.parts = append(t.parts, operand{literal: string(n.Text)})
		case *parse.ActionNode:
			part, err := c.pipe(n.Pipe)
			if err != nil {
				return nil, err
			}
			t.parts = append(t.parts, *part)
		default:
			return nil, errTemplate
		}
	}
	if !c.reads {
		return nil, errors.New("a template without a field: it would be the same for every credential")
	}
	return t, nil
}

// String is the text as written.
func (t *Template) String() string { return t.text }

type templateCompiler struct {
	calls int
	reads bool // some field
}

func (c *templateCompiler) pipe(n *parse.PipeNode) (*operand, error) {
	if n == nil || len(n.Decl) > 0 || n.IsAssign || len(n.Cmds) == 0 {
		return nil, errTemplate
	}
	var value *operand
	for _, cmd := range n.Cmds {
		var err error
		if value, err = c.command(cmd.Args, value); err != nil {
			return nil, err
		}
	}
	return value, nil
}

// command is one part of a pipeline, which ends in what is piped into it.
func (c *templateCompiler) command(args []parse.Node, piped *operand) (*operand, error) {
	if len(args) == 0 {
		return nil, errTemplate
	}
	name, ok := args[0].(*parse.IdentifierNode)
	if !ok {
		if len(args) != 1 || piped != nil {
			return nil, errTemplate
		}
		return c.operand(args[0])
	}
	if name.Ident == "index" {
		return c.index(args[1:], piped)
	}
	f := function(name.Ident)
	if c.calls++; f == nil || c.calls > maxCalls {
		return nil, errTemplate
	}
	transforms := name.Ident == "lower" || name.Ident == "upper"
	switch {
	case len(args) == 1 && piped != nil:
		return &operand{function: f, of: piped, transforms: transforms}, nil
	case len(args) == 2 && piped == nil:
		of, err := c.operand(args[1])
		if err != nil {
			return nil, err
		}
		return &operand{function: f, of: of, transforms: transforms}, nil
	}
	return nil, errTemplate
}

// index is index . "field".
func (c *templateCompiler) index(args []parse.Node, piped *operand) (*operand, error) {
	if len(args) != 2 || piped != nil {
		return nil, errTemplate
	}
	_, dot := args[0].(*parse.DotNode)
	name, text := args[1].(*parse.StringNode)
	if !dot || !text {
		return nil, errTemplate
	}
	return c.field(name.Text)
}

func (c *templateCompiler) operand(n parse.Node) (*operand, error) {
	switch n := n.(type) {
	case *parse.FieldNode:
		if len(n.Ident) == 1 {
			return c.field(n.Ident[0])
		}
	case *parse.StringNode:
		return &operand{literal: n.Text}, nil
	case *parse.PipeNode:
		return c.pipe(n)
	}
	return nil, errTemplate
}

func (c *templateCompiler) field(name string) (*operand, error) {
	if name == "" {
		return nil, errTemplate
	}
	if _, _, err := cutPointer(name); err != nil {
		return nil, err
	}
	c.reads = true
	return &operand{field: name}, nil
}

// execute fills the holes, and says with what. Its error is a [*MissingError]
// with all that is missing, or tells of something else, but of no value.
func (t *Template) execute(fields map[string]secret.Value) ([]byte, []part, error) {
	var b strings.Builder
	var parts []part
	missing := &MissingError{}
	var failure error
	for i := range t.parts {
		s, err := t.parts[i].eval(fields)
		switch more, isMissing := errors.AsType[*MissingError](err); {
		case isMissing:
			for _, name := range more.Fields {
				if !slices.Contains(missing.Fields, name) {
					missing.Fields = append(missing.Fields, name)
				}
			}
		case err != nil:
			failure = err
		case b.Len()+len(s) > maxValue:
			failure = errTooLong
		default:
			b.WriteString(s)
			parts = t.parts[i].filled(parts, fields, s)
		}
	}
	if len(missing.Fields) > 0 {
		return nil, nil, missing
	}
	if failure != nil {
		return nil, nil, failure
	}
	return []byte(b.String()), parts, nil
}

// filled adds what a hole was filled with: the field as it is, and, where more
// than one of the encodings that a redactor knows was made of it, that too.
func (o *operand) filled(parts []part, fields map[string]secret.Value, made string) []part {
	calls, at := 0, o
	for ; at.function != nil; at = at.of {
		if calls++; at.transforms {
			calls = 2
		}
	}
	if at.field == "" {
		return parts // a text of the template's own
	}
	if calls > 1 {
		parts = append(parts, part{at.field, []byte(made)})
	}
	if b, err := pick(at.field, fields); err == nil {
		parts = append(parts, part{at.field, b})
	}
	return parts
}

var errTooLong = fmt.Errorf("the template makes over %d bytes", maxValue)

func (o *operand) eval(fields map[string]secret.Value) (string, error) {
	switch {
	case o.function != nil:
		s, err := o.of.eval(fields)
		if err != nil {
			return "", err
		}
		if s = o.function(s); len(s) > maxValue {
			return "", errTooLong
		}
		return s, nil
	case o.field != "":
		b, err := pick(o.field, fields)
		return string(b), err
	}
	return o.literal, nil
}
