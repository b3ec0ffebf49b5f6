// Package endpoint serves leased credentials to the programs of one command
// over loopback, so that what they use stays good past the first expiry and
// stands in no file.
//
// A [Keeper] keeps leases fresh: it renews each well ahead of its end, in
// place or by another lease, one try at a time. A [Server] speaks the
// protocols in which tools ask for credentials again by themselves: AWS
// container credentials, the metadata server of Google's machines, and Vault's
// reads. It has one listener on 127.0.0.1, for as long as the command runs.
//
// It promises: who asks for AWS or Vault credentials has a bearer of 256
// random bits, which is made for this server and is good for nothing else;
// who asks for Google's, whose protocol has no bearer, is a process of the
// same user that the command started; requests that a browser could be made to
// send are refused; nothing but what the leases hold is served, and no request
// is passed on to a back end; a value is announced before it is served, so
// that it can be hidden in output; when a renewal fails the old values are
// served until they expire, and none after that; no log line and no error
// holds a value or a bearer.
//
// It can't tell programs of the command apart: each of them may ask.
package endpoint
