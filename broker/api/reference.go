package api

// A Reference asks for what a reference (package ref) names, without a lease
// definition. References to one secret are one lease, whose name is the
// canonical reference without its field.
type Reference struct {
	Ref string `json:"ref"`
	// Variable gets the value: of the field that the reference names, or, if it
	// names none, of the secret's only field, or all fields as JSON. One that
	// ends in * is a prefix for the names of all fields: the whole secret, a
	// variable each.
	Variable string `json:"variable"`
}
