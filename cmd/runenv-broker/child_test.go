//go:build unix

package main

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// child is the command that runs under dev, or under runenv, in the scripts.
func child() {
	args := os.Args[2:]
	switch os.Args[1] {
	case "exit": // N
		n, err := strconv.Atoi(args[0])
		check(err)
		os.Exit(n)
	case "names": // the names of the environment, sorted
		var names []string
		for _, kv := range os.Environ() {
			name, _, _ := strings.Cut(kv, "=")
			names = append(names, name)
		}
		slices.Sort(names)
		fmt.Println(strings.Join(names, "\n"))
	case "printenv": // NAME...
		for _, name := range args {
			value, ok := os.LookupEnv(name)
			if !ok {
				check(errors.New(name + " isn't set"))
			}
			fmt.Println(value)
		}
	case "is": // NAME VALUE: says so on its own authority, since output is redacted
		if os.Getenv(args[0]) != args[1] {
			check(errors.New(args[0] + " has another value"))
		}
		fmt.Println("it is")
	case "encodings": // NAME: its value as programs print values
		v := os.Getenv(args[0])
		fmt.Println("plain:", v)
		fmt.Println("base64:", base64.StdEncoding.EncodeToString([]byte("user:"+v)))
		fmt.Println("hex:", hex.EncodeToString([]byte(v)))
		fmt.Println("url:", "https://example.com/?q="+url.QueryEscape(v))
	case "die": // by a signal that can't be caught
		check(syscall.Kill(os.Getpid(), syscall.SIGKILL))
		select {}
	case "murder": // kills its parent, and goes with it
		check(syscall.Kill(os.Getppid(), syscall.SIGKILL))
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
