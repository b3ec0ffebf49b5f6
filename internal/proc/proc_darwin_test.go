package proc_test

var systemModes = map[string]func() int{}
