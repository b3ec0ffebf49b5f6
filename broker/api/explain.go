package api

// PathExplain says what leases would deliver.
const PathExplain = PathLeases + "/explain"

// Explanation answers a [LeaseRequest] at PathExplain: what its leases would
// deliver, if they were taken. None is taken, and no back end is asked.
type Explanation struct {
	Leases []Explained `json:"leases"`
}

// Explained is what one lease would deliver.
type Explained struct {
	Name         string `json:"name"`
	Provider     string `json:"provider"`
	Revocability string `json:"revocability"` // revocable, expires or static
	// Seconds that a lease asks to live; 0 means as long as the session, or the
	// back end's own choice.
	TTLSeconds int64          `json:"ttl_seconds,omitempty"`
	Variables  []ExplainedVar `json:"variables"`
}

// ExplainedVar is one variable of a lease, or one for each field of its
// credential.
type ExplainedVar struct {
	// Name; one that ends in * is the beginning of the names of several: what
	// fields there are only the back end knows.
	Name     string `json:"name"`
	Mask     bool   `json:"mask"`               // hidden in output
	File     bool   `json:"file,omitempty"`     // it holds the path of a file
	Optional bool   `json:"optional,omitempty"` // left out where the credential lacks its field
}
