package shape

import (
	"strings"
)

// Slots are the variables and files of one command, to find two that can't be
// there together. The zero value is ready.
type Slots struct {
	variables map[string][]slot
	files     map[string]string // by name in lower case: which variable's
}

type slot struct{ file, profile string }

// A CollisionError says that two variables, files or AWS profiles of one
// command have one name.
type CollisionError struct {
	what string
	Name string
}

func (e *CollisionError) Error() string {
	switch e.what {
	case "file":
		return "two files of the request are named " + e.Name
	case "profile":
		return "two AWS profiles of the request are named " + e.Name
	}
	return "two variables of the request are named " + e.Name
}

// What is the kind of thing that Name names: a variable, file or profile.
func (e *CollisionError) What() string { return "the " + e.what + " " + e.Name }

// Add takes a variable before it is made. "*" is let pass: what it makes is
// known later.
func (s *Slots) Add(v Var) error {
	if v.Name == All {
		return nil
	}
	return s.add(v.Name, v.FileName(), v.Profile)
}

// AddOut takes a variable that was made.
func (s *Slots) AddOut(o Out) error { return s.add(o.Name, o.File, o.Profile) }

// add lets several leases share a variable where each is a profile of its own
// in the one file.
func (s *Slots) add(variable, file, profile string) error {
	if s.variables == nil {
		s.variables, s.files = map[string][]slot{}, map[string]string{}
	}
	for _, other := range s.variables[variable] {
		switch {
		case profile == "" || other.profile == "" || file != other.file:
			return &CollisionError{"variable", variable}
		case profile == other.profile:
			return &CollisionError{"profile", profile}
		}
	}
	folded := strings.ToLower(file) // so that it holds on any file system
	if owner, taken := s.files[folded]; file != "" && taken && owner != variable {
		return &CollisionError{"file", file}
	}
	s.variables[variable] = append(s.variables[variable], slot{file, profile})
	if file != "" {
		s.files[folded] = variable
	}
	return nil
}
