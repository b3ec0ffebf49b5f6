package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// child is the command that runs under runenv in the scripts.
func child() {
	args := os.Args[2:]
	switch os.Args[1] {
	case "exit": // N
		n, err := strconv.Atoi(args[0])
		check(err)
		os.Exit(n)
	case "printenv": // NAME...: fails for one that isn't set
		for _, name := range args {
			value, ok := os.LookupEnv(name)
			if !ok {
				check(errors.New(name + " isn't set"))
			}
			fmt.Println(value)
		}
	case "names": // the names of the environment, sorted
		var names []string
		for _, kv := range os.Environ() {
			name, _, _ := strings.Cut(kv, "=")
			names = append(names, name)
		}
		slices.Sort(names)
		fmt.Println(strings.Join(names, "\n"))
	case "bytes": // NAME: its value on both streams, a byte in each write
		for _, c := range []byte(os.Getenv(args[0]) + "\n") {
			_, err := os.Stdout.Write([]byte{c})
			check(err)
			_, err = os.Stderr.Write([]byte{c})
			check(err)
		}
	case "cat":
		_, err := io.Copy(os.Stdout, os.Stdin)
		check(err)
	case "die": // by a signal that can't be caught
		self, err := os.FindProcess(os.Getpid())
		check(err)
		check(self.Kill())
		select {}
	case "wait": // STARTED GO: makes one file and waits for the other
		check(os.WriteFile(args[0], nil, 0o600))
		for tick := time.NewTicker(2 * time.Millisecond); ; <-tick.C {
			if _, err := os.Stat(args[1]); err == nil {
				return
			}
		}
	case "signals": // STARTED: makes the file, prints signals until TERM, exits 7
		signals := make(chan os.Signal, 10)
		signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
		check(os.WriteFile(args[0], nil, 0o600))
		for s := range signals {
			fmt.Println("got", s)
			if s == syscall.SIGTERM {
				os.Exit(7)
			}
		}
	default:
		check(errors.New("no such behaviour"))
	}
}
