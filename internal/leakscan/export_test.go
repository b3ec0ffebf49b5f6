package leakscan

// Bounded gives a search limits that a test can reach.
func Bounded(cfg Config, depth, members int, free, ratio, total int64) Config {
	cfg.limits = limits{depth: depth, members: members, free: free, ratio: ratio, total: total}
	return cfg
}

// Match reports whether a pattern matches a path.
func Match(pattern, name string) (bool, error) {
	g, err := compileGlobs([]string{pattern})
	return g.match(name), err
}
