package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
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
	case "ask": // aws|gce|vault PATH: prints what the endpoint answers; its status if that isn't 200
		ask(args)
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

// ask does what a tool does that asks for credentials.
func ask(args []string) {
	var address string
	header := http.Header{}
	switch args[0] {
	case "aws":
		address = os.Getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI")
		header.Set("Authorization", os.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN"))
	case "gce":
		address = "http://" + os.Getenv("GCE_METADATA_HOST") + "/computeMetadata/v1/" + args[1]
		header.Set("Metadata-Flavor", "Google")
	case "vault":
		address = os.Getenv("VAULT_ADDR") + "/v1/" + args[1]
		header.Set("X-Vault-Token", os.Getenv("VAULT_TOKEN"))
	}
	req, err := http.NewRequest(http.MethodGet, address, http.NoBody)
	check(err)
	req.Header = header
	resp, err := http.DefaultClient.Do(req)
	check(err)
	body, err := io.ReadAll(resp.Body)
	check(err)
	check(resp.Body.Close())
	if resp.StatusCode != http.StatusOK {
		check(errors.New(resp.Status))
	}
	fmt.Printf("%s\n", body)
}
