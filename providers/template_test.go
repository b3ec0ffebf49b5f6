package providers_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/runenv/action/providers"
)

func TestT36Template(t *testing.T) {
	vars := providers.Vars{
		"project.name": "shop-api", "project.vars.team": "shop", "role.name": "prod",
		"project.vars.slash": "a/b", "project.vars.up": "..", "project.vars.dots": "a..b", "project.vars.empty": "",
		"project.vars.hidden": ".ssh", "project.vars.query": "a?b", "project.vars.percent": "a%2fb", "project.vars.nul": "a\x00b",
		"project.vars.space": "a b", "project.vars.newline": "a\n", "project.vars.hole": "{{role.name}}", "project.vars.option": "-rf",
	}
	tests := []struct{ text, want string }{ // no want: refused
		{"database/creds/{{project.name}}-ro", "database/creds/shop-api-ro"},
		{"{{ project.vars.team }}/{{role.name}}", "shop/prod"},
		{"plain", "plain"},
		{"x/{{project.vars.missing}}", ""},
		{"x/{{environment}}", ""},
		{"x/{{project.vars.slash}}", ""},
		{"x/{{project.vars.up}}", ""},
		{"x/{{project.vars.dots}}", ""},
		{"x/{{project.vars.empty}}", ""},
		{"x/{{project.vars.hidden}}", ""},
		{"x/{{project.vars.query}}", ""},
		{"x/{{project.vars.percent}}", ""},
		{"x/{{project.vars.nul}}", ""},
		{"x/{{project.vars.space}}", ""},
		{"x/{{project.vars.newline}}", ""},
		{"x/{{project.vars.hole}}", ""},
		{"x/{{project.vars.option}}", ""},
		{"x/{{ref}}", ""},
		{"x/{{project.id}}", ""},
		{"x/{{role.name", ""},
		{"x/role.name}}", ""},
		{"x/{{{{role.name}}}}", ""},
		{strings.Repeat("x", 1025), ""},
	}
	for _, tt := range tests {
		tmpl, err := providers.ParseTemplate(tt.text)
		got := ""
		if err == nil {
			got, err = tmpl.Expand(vars)
		}
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("expanding %q = %q, %v, want %q", tt.text, got, err, tt.want)
		}
	}
}

func TestTemplateNames(t *testing.T) {
	tmpl, err := providers.ParseTemplate("{{role.name}}/{{project.name}}/{{role.name}}")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := tmpl.Names(), []string{"role.name", "project.name"}; !slices.Equal(got, want) {
		t.Errorf("Names() = %v, want %v", got, want)
	}
}

// Whatever the values, each hole yields at most one segment.
func FuzzT36Template(f *testing.F) {
	f.Add("a/{{project.name}}/b", "v")
	f.Add("{{project.name}}{{project.name}}", "..")
	f.Fuzz(func(t *testing.T, text, value string) {
		tmpl, err := providers.ParseTemplate(text)
		if err != nil {
			return
		}
		got, err := tmpl.Expand(providers.Vars{"project.name": value})
		if err != nil || len(tmpl.Names()) == 0 {
			return
		}
		// A harmless value gives the shape that any other must keep.
		shape, err := tmpl.Expand(providers.Vars{"project.name": "x"})
		if err != nil {
			t.Fatalf("Expand(x) = %v", err)
		}
		if strings.Count(got, "/") != strings.Count(shape, "/") || strings.Contains(value, "..") {
			t.Errorf("%q with %q became %q", text, value, got)
		}
	})
}
