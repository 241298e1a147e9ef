package dns

import (
	"bytes"
	"slices"
	"strings"
)

// Nameservers returns the servers that a resolv.conf names.
func Nameservers(b []byte) string {
	var list []string
	for line := range bytes.Lines(b) {
		if f := strings.Fields(string(line)); len(f) > 1 && f[0] == "nameserver" {
			list = append(list, f[1])
		}
	}
	return strings.Join(list, " ")
}

// HostAddresses returns the addresses that a file of hosts gives a name.
func HostAddresses(b []byte, name string) string {
	var list []string
	for line := range bytes.Lines(b) {
		text, _, _ := strings.Cut(string(line), "#")
		if f := strings.Fields(text); len(f) > 1 && slices.ContainsFunc(f[1:], func(n string) bool { return strings.EqualFold(n, name) }) {
			list = append(list, f[0])
		}
	}
	return strings.Join(list, " ")
}
