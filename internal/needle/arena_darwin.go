package needle

func dontDump([]byte) {} // there is no such advice
