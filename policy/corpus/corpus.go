// Package corpus holds messages as devices and programs really send them, mistakes included, each
// with what must become of it. The tests of package policy let
// [github.com/sendas/sendas/policy.Policy.Decide] change them in memory; those of contrib/lab send
// them through Postfix to the simulated Exchange Online. Both compare with the same files.
//
// NAME.eml is the message as the device sends it: raw bytes, 8-bit included. A line that ends with
// a bare LF in the file is sent with CRLF, so that the files can be read and edited; all else is
// sent as it stands.
//
// NAME.want says who sends it and what must come of it, one "key: value" a line:
//
//	readme       why this case exists; several lines are one text
//	client       the address of the device
//	login        the SASL login; without client, it comes from 192.0.2.20
//	mail-from    the envelope sender; nothing is the null sender
//	rcpt         an envelope recipient; repeated; NAME@fabrikam.com if there is none
//	wire         as-is: a bare LF is sent as it is, too
//	action       accept or reject
//	reply        with reject: the beginning of the answer
//	postfix-reply
//	             the beginning of the answer where Postfix itself refuses what the policy never gets to see
//	from         the From field that leaves, decoded: "NAME" <ADDRESS>, or ADDRESS where there is no name
//	sender       the envelope sender that leaves
//	mailbox      who authenticates
//	field        "Name: value": a field that must leave, decoded; repeated
//	no-field     "Name" or "Name: value": must not leave; repeated
//	keep         "Name": its fields leave byte for byte; repeated
//	changed      "Name": of those fields that a relay leaves alone, one that changes here; repeated
//	changes      none: the whole header leaves byte for byte
//
// The site is contoso.com as contrib/lab has it. An ellipsis (…) in a value of from, field and
// no-field stands for any text. What a device does not call From, Sender, Reply-To, Date, and so on
// has to leave byte for byte anyway, and so has the body: no key is needed for it.
package corpus

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

//go:embed testdata
var files embed.FS

// A Case is one message with what must become of it. Its fields are the keys of the .want file.
type Case struct {
	Name     string // of the files, without suffix
	Readme   string // in one line
	Client   netip.Addr
	Login    string
	MailFrom string // "" is the null sender
	Rcpts    []string

	Accept       bool
	Reply        string // "" unless rejected
	PostfixReply string
	From         string
	Sender       string
	Mailbox      string
	Has          []string // field
	HasNot       []string // no-field
	Keep         []string
	Changed      []string
	Unchanged    bool // changes: none

	raw  []byte
	asIs bool // wire: as-is
}

// Load returns all cases in the order of their names. It refuses a .want file that lacks a key, or
// says what nobody would check.
func Load() ([]*Case, error) {
	entries, err := files.ReadDir("testdata")
	if err != nil {
		return nil, err
	}
	var list []*Case
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".eml")
		if !ok {
			if m := strings.TrimSuffix(e.Name(), ".want") + ".eml"; !exists(m) {
				return nil, fmt.Errorf("%s: there is no %s", e.Name(), m)
			}
			continue
		}
		c, err := load(name)
		if err != nil {
			return nil, fmt.Errorf("%s.want: %w", name, err)
		}
		list = append(list, c)
	}
	return list, nil
}

func exists(name string) bool {
	f, err := files.Open("testdata/" + name)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

func load(name string) (*Case, error) {
	raw, err := files.ReadFile("testdata/" + name + ".eml")
	if err != nil {
		return nil, err
	}
	want, err := files.ReadFile("testdata/" + name + ".want")
	if err != nil {
		return nil, err
	}
	c := &Case{Name: name, raw: raw, Client: netip.MustParseAddr("192.0.2.20")}
	seen := map[string]bool{}
	for line := range strings.Lines(string(want)) {
		key, value, ok := strings.Cut(strings.TrimRight(line, "\n"), ":")
		if !ok {
			return nil, fmt.Errorf("%q is not \"key: value\"", line)
		}
		if err := c.set(key, strings.TrimPrefix(value, " "), seen[key]); err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		seen[key] = true
	}
	if len(c.Rcpts) == 0 {
		c.Rcpts = []string{name + "@fabrikam.com"}
	}
	return c, c.complete(seen)
}

// set takes one line of a .want file.
func (c *Case) set(key, value string, again bool) error {
	lists := map[string]*[]string{"rcpt": &c.Rcpts, "field": &c.Has, "no-field": &c.HasNot, "keep": &c.Keep, "changed": &c.Changed}
	if l := lists[key]; l != nil {
		*l = append(*l, value)
		return nil
	}
	if key == "readme" {
		c.Readme = strings.TrimSpace(c.Readme + " " + value)
		return nil
	}
	if again {
		return errors.New("is there twice")
	}
	texts := map[string]*string{"login": &c.Login, "mail-from": &c.MailFrom, "reply": &c.Reply, "postfix-reply": &c.PostfixReply,
		"from": &c.From, "sender": &c.Sender, "mailbox": &c.Mailbox}
	if t := texts[key]; t != nil {
		*t = value
		return nil
	}
	var err error
	switch key + ": " + value {
	case "action: accept":
		c.Accept = true
	case "action: reject":
	case "changes: none":
		c.Unchanged = true
	case "wire: as-is":
		c.asIs = true
	default:
		if key != "client" {
			return fmt.Errorf("%q is not known", value)
		}
		c.Client, err = netip.ParseAddr(value)
	}
	return err
}

// complete refuses a case that would say less than it seems to.
func (c *Case) complete(seen map[string]bool) error {
	need := []string{"readme", "mail-from", "action"}
	if c.Accept {
		need = append(need, "from", "sender", "mailbox")
	} else {
		need = append(need, "reply")
	}
	if !seen["login"] {
		need = append(need, "client")
	}
	for _, k := range need {
		if !seen[k] {
			return fmt.Errorf("%s is missing", k)
		}
	}
	outcome := []string{"from", "sender", "mailbox", "field", "no-field", "keep", "changed", "changes"}
	if !c.Accept && slices.ContainsFunc(outcome, func(k string) bool { return seen[k] }) {
		return errors.New("what is rejected does not leave")
	}
	return nil
}

// Wire returns the message as the device sends it, dots not doubled. Its last line is complete.
func (c *Case) Wire() []byte {
	if c.asIs {
		if b, ok := bytes.CutSuffix(c.raw, []byte("\n")); ok && !bytes.HasSuffix(b, []byte("\r")) {
			return append(bytes.Clone(b), "\r\n"...)
		}
		return c.raw
	}
	var b bytes.Buffer
	for line := range bytes.Lines(c.raw) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		b.Write(bytes.TrimSuffix(line, []byte("\r")))
		b.WriteString("\r\n")
	}
	return b.Bytes()
}
