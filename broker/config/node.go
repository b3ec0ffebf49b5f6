package config

import (
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/runenv/action/broker/policy"
)

const (
	// maxFileBytes bounds each file; 1,000 projects took 110 KiB.
	maxFileBytes = 1 << 20

	// maxDepth bounds nesting, before the parser recurses. The deepest of our
	// own keys is nine levels down; params of a provider may go further.
	maxDepth = 24

	// maxSequenceColumn bounds where "- " may stand: only nesting moves it.
	maxSequenceColumn = 200
)

type kind uint8

const (
	scalar kind = iota
	sequence
	mapping
	null // nothing was written
)

// A node is what is left of YAML when all that could surprise has been
// refused: scalars, sequences, and mappings whose keys are text and differ.
type node struct {
	kind   kind
	pos    Pos
	text   string // of a scalar
	quoted bool   // the scalar's text is certain: quotes or a block
	items  []*node
	keys   []*node // of a mapping, beside items
}

// parse reads one document. It returns nil if there are problems. No message
// holds any text of the file.
func parse(file string, data []byte) (*node, []Problem) {
	whole := Pos{File: file}
	switch {
	case len(data) > maxFileBytes:
		return nil, []Problem{problem(whole, "", "over 1 MiB", "divide it with include")}
	case !utf8.Valid(data):
		return nil, []Problem{problem(whole, "", "not UTF-8", "")}
	}
	if i := strings.IndexFunc(string(data), forbidden); i >= 0 {
		return nil, []Problem{problem(position(file, data, i), "", "a control character or byte order mark", "remove it")}
	}
	tokens := lexer.Tokenize(string(data))
	if problems := checkTokens(file, tokens); len(problems) > 0 {
		return nil, problems
	}
	parsed, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return nil, []Problem{syntaxProblem(whole, err)}
	}
	var body ast.Node
	for _, doc := range parsed.Docs {
		if doc.Body == nil {
			continue
		}
		if body != nil {
			return nil, []Problem{problem(at(file, doc.Body.GetToken()), "", secondDocument, "keep one document")}
		}
		body = doc.Body
	}
	if body == nil {
		return nil, []Problem{problem(whole, "", "an empty file", "")}
	}
	c := &converter{file: file}
	root := c.convert(body, 0)
	return root, c.problems
}

const secondDocument = "a second YAML document"

// forbidden are characters that YAML forbids or that change lines unseen.
func forbidden(r rune) bool {
	return r < ' ' && r != '\n' && r != '\r' && r != '\t' || 0x7f <= r && r < 0xa0 ||
		r == 0x2028 || r == 0x2029 || r == 0xfeff
}

// position is that of the byte at offset i.
func position(file string, data []byte, i int) Pos {
	before := string(data[:i])
	line := strings.LastIndexByte(before, '\n') + 1
	return Pos{File: file, Line: strings.Count(before, "\n") + 1, Column: utf8.RuneCountInString(before[line:]) + 1}
}

func at(file string, tk *token.Token) Pos {
	if tk == nil || tk.Position == nil {
		return Pos{File: file}
	}
	return Pos{File: file, Line: tk.Position.Line, Column: tk.Position.Column}
}

// syntaxProblem keeps the place of a parser's error and drops its text, which
// holds lines of the file.
func syntaxProblem(whole Pos, err error) Problem {
	p := Problem{Pos: whole, Message: "not valid YAML here", Hint: "check the indentation and that quotes and brackets close; within { } and [ ], quote what holds one of { } [ ] ,"}
	if e, ok := errors.AsType[yaml.Error](err); ok {
		p.Pos = at(whole.File, e.GetToken())
	}
	return p
}

// checkTokens refuses what hides a value from a reader, and nesting that would
// make the parser recurse too deeply.
func checkTokens(file string, tokens token.Tokens) []Problem {
	var problems []Problem
	add := func(tk *token.Token, message, hint string) {
		problems = append(problems, problem(at(file, tk), "", message, hint))
	}
	depth := 0
	for i, tk := range tokens {
		switch tk.Type {
		case token.InvalidType:
			add(tk, "not valid YAML here", "check the indentation and that quotes and brackets close")
			return problems
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			add(tk, "anchors, aliases and merge keys aren't taken", "write the value out: whoever reads a rule must see what it says")
		case token.TagType:
			add(tk, "tags aren't taken", "quote the value if a string is meant")
		case token.DirectiveType:
			add(tk, "directives aren't taken", "remove the line")
		case token.MappingKeyType:
			add(tk, "complex keys aren't taken", "write key: value")
		case token.DocumentHeaderType:
			if i > 0 {
				add(tk, secondDocument, "keep one document")
			}
		case token.DocumentEndType:
			if i < len(tokens)-1 {
				add(tk, secondDocument, "keep one document")
			}
		case token.MappingStartType, token.SequenceStartType:
			if depth++; depth > maxDepth {
				add(tk, "nested too deeply", "")
				return problems
			}
		case token.MappingEndType, token.SequenceEndType:
			depth--
		case token.SequenceEntryType:
			if tk.Position.Column > maxSequenceColumn {
				add(tk, "nested too deeply", "")
				return problems
			}
		}
	}
	return problems
}

type converter struct {
	file     string
	problems []Problem
}

func (c *converter) add(tk *token.Token, message, hint string) *node {
	pos := at(c.file, tk)
	c.problems = append(c.problems, problem(pos, "", message, hint))
	return &node{kind: null, pos: pos}
}

func (c *converter) convert(n ast.Node, depth int) *node {
	if depth > maxDepth {
		return c.add(n.GetToken(), "nested too deeply", "")
	}
	out := &node{pos: at(c.file, n.GetToken())}
	switch n := n.(type) {
	case *ast.MappingNode:
		return c.mapping(out, n.Values, depth)
	case *ast.MappingValueNode:
		return c.mapping(out, []*ast.MappingValueNode{n}, depth)
	case *ast.SequenceNode:
		out.kind = sequence
		for _, value := range n.Values {
			out.items = append(out.items, c.convert(value, depth+1))
		}
	case *ast.LiteralNode:
		out.text, out.quoted = n.Value.Value, true
	case *ast.StringNode:
		out.text = n.Value
		out.quoted = n.Token.Type == token.SingleQuoteType || n.Token.Type == token.DoubleQuoteType
		if !out.quoted && strings.ContainsAny(strings.Trim(n.Token.Origin, " \r\n"), "\r\n") {
			return c.add(n.Token, "a plain value over several lines", "put it in quotes on one line, or use a | block")
		}
	case *ast.NullNode:
		if n.Token.Type == token.ImplicitNullType {
			out.kind = null
		} else {
			out.text = n.Token.Value
		}
	case ast.ScalarNode:
		out.text = n.GetToken().Value
	default:
		return c.add(n.GetToken(), "not valid YAML here", "")
	}
	return out
}

func (c *converter) mapping(out *node, values []*ast.MappingValueNode, depth int) *node {
	out.kind = mapping
	if len(values) > 0 {
		out.pos = at(c.file, values[0].Key.GetToken())
	}
	seen := make(map[string]Pos, len(values))
	for _, value := range values {
		key := c.convert(value.Key, depth+1)
		if key.kind != scalar || !key.quoted && ambiguous(key.text) {
			c.add(value.Key.GetToken(), "a key that YAML may read as something else", "put it in quotes")
			continue
		}
		if first, doubled := seen[key.text]; doubled {
			c.add(value.Key.GetToken(), "this key stands already at "+first.String(), "keep one of the two")
			continue
		}
		seen[key.text] = key.pos
		out.keys = append(out.keys, key)
		out.items = append(out.items, c.convert(value.Value, depth+1))
	}
	return out
}

// pathTo is the path of keys to an entry. A key that isn't ours joins it only
// if it looks like a name and has a value: {hunter2} is a key to YAML, too.
func pathTo(path string, key, value *node) string {
	if value.kind == null || !policy.ValidName(strings.ToLower(key.text)) {
		return path
	}
	return join(path, key.text)
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
