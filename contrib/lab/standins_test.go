package lab

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	protocol "github.com/d--j/go-milter"
)

// standIns stand for the daemons that Postfix has around it on real hosts: mailbox servers, filters,
// milters, policy services, a SASL server, data bases. All shapes share those of their bed.
type standIns struct {
	t   *testing.T
	ctx context.Context
	bed *bed

	mu     sync.Mutex                   // guards all below
	came   []Mail                       // what ended at one of them
	tables map[string]map[string]string // what stands in the data base
}

// neighbours are the names that mean something to a shape's host.
var neighbours = []string{"inner.lan", "mail.fabrikam.com", "mx.partner.example", "backup.lan", "rspamd", "dovecot", "list.example.org", "elsewhere.example.com"}

// How the stand-ins are found: a number is a port, as the shapes name it.
var standing = []struct {
	where string
	serve func(s *standIns, l net.Listener)
}{
	{"25 out", each((*standIns).takeMail)}, {"24", each((*standIns).takeMail)}, {"2003", each((*standIns).takeMail)}, {"private/dovecot-lmtp", each((*standIns).takeMail)},
	{"10024", each(filterTo("10025"))}, {"10026", each(filterTo("10027"))}, {"10023", each(filterTo("10025"))},
	{"8891", milters}, {"11332", milters}, {"9900", milters}, {"12768", milters}, {"opendkim/opendkim.sock", milters},
	{"10031", each((*standIns).policy)}, {"7777", each((*standIns).policy)}, {"12340", each((*standIns).policy)}, {"private/policy-spf", each((*standIns).policy)},
	{"private/auth", each((*standIns).auth)}, {"10001", each((*standIns).auth)}, {"3306", each((*standIns).lookUp)},
}

func startStandIns(ctx context.Context, t *testing.T, b *bed) *standIns {
	t.Helper()
	s := &standIns{t: t, ctx: ctx, bed: b}
	for _, d := range standing {
		var l net.Listener
		var err error
		if d.where[0] <= '9' {
			l, err = net.Listen("tcp", b.port(t, d.where))
		} else {
			path := filepath.Join(b.Postfix.QueueDir(), d.where)
			err = os.MkdirAll(filepath.Dir(path), 0o755)
			if err == nil {
				l, err = net.Listen("unix", path)
			}
			err = errors.Join(err, os.Chmod(path, 0o666))
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go d.serve(s, l)
	}
	return s
}

// each serves one connection after the other, until the listener is closed.
func each(serve func(s *standIns, c net.Conn)) func(s *standIns, l net.Listener) {
	return func(s *standIns, l net.Listener) {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); serve(s, c) }()
		}
	}
}

var pathOf = regexp.MustCompile(`<(.*?)>`)

// converse speaks SMTP or LMTP and hands over each message.
func (s *standIns) converse(c net.Conn, take func(Mail) error) {
	in := bufio.NewReader(c)
	say := func(line string) { io.WriteString(c, line+"\r\n") }
	var m Mail
	lmtp := false
	say("220 stand-in.lab.example ready")
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		verb, _, _ := strings.Cut(strings.ToUpper(line), " ")
		switch verb {
		case "EHLO", "LHLO":
			lmtp = verb == "LHLO"
			say("250-stand-in.lab.example\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n250-XFORWARD NAME ADDR PROTO HELO SOURCE PORT\r\n250 8BITMIME")
		case "MAIL":
			m = Mail{From: pathOf.FindStringSubmatch(line)[1]}
			say("250 2.1.0 Ok")
		case "RCPT":
			m.To = append(m.To, pathOf.FindStringSubmatch(line)[1])
			say("250 2.1.5 Ok")
		case "DATA":
			say("354 Go on")
			for {
				line, err := in.ReadString('\n')
				if err != nil {
					return
				}
				if line == ".\r\n" {
					break
				}
				m.Data = append(m.Data, strings.TrimPrefix(line, ".")...)
			}
			reply := "250 2.0.0 Ok"
			if err := take(m); err != nil {
				reply = "451 4.3.0 " + strings.ReplaceAll(err.Error(), "\n", " ")
			}
			say(reply)
			for range m.To[1:] {
				if lmtp { // a reply for each
					say(reply)
				}
			}
		case "QUIT":
			say("221 2.0.0 Bye")
			return
		default:
			say("250 2.0.0 Ok")
		}
	}
}

// takeMail is a server at which mail ends.
func (s *standIns) takeMail(c net.Conn) {
	s.converse(c, func(m Mail) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.came = append(s.came, m)
		return nil
	})
}

// filterTo is a filter: it takes a message, and gives it back before it answers.
func filterTo(back string) func(s *standIns, c net.Conn) {
	return func(s *standIns, c net.Conn) {
		s.converse(c, func(m Mail) error {
			res, err := Send(s.ctx, s.bed.port(s.t, back), m)
			if err == nil && !res.Accepted() {
				err = errors.New(res.Verdict().Line())
			}
			return err
		})
	}
}

// seal is what the milters of others add.
type seal struct{ protocol.NoOpMilter }

func (seal) EndOfMessage(m protocol.Modifier) (*protocol.Response, error) {
	return protocol.RespAccept, m.AddHeader("X-Stand-In", "seen")
}

// milters looks at mail as OpenDKIM or rspamd do, and adds a field.
func milters(_ *standIns, l net.Listener) {
	protocol.NewServer(protocol.WithMilter(func() protocol.Milter { return seal{} }), protocol.WithActions(protocol.OptAddHeader)).Serve(l)
}

// policy is a policy service that has no opinion.
func (s *standIns) policy(c net.Conn) {
	for in := bufio.NewScanner(c); in.Scan(); {
		if in.Text() == "" {
			io.WriteString(c, "action=DUNNO\n\n")
		}
	}
}

// auth is Dovecot's server for SASL: whoever says his name twice is let in.
func (s *standIns) auth(c net.Conn) {
	io.WriteString(c, "VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\t0123456789abcdef0123456789abcdef\nDONE\n")
	for in := bufio.NewScanner(c); in.Scan(); {
		f := strings.Split(in.Text(), "\t")
		if f[0] != "AUTH" || len(f) < 3 {
			continue
		}
		said, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(f[len(f)-1], "resp="))
		if w := strings.Split(string(said), "\x00"); len(w) == 3 && w[1] == w[2] {
			fmt.Fprintf(c, "OK\t%s\tuser=%s\n", f[1], w[1])
		} else {
			fmt.Fprintf(c, "FAIL\t%s\n", f[1])
		}
	}
}

// lookUp is a data base, as a table of the kind socketmap.
func (s *standIns) lookUp(c net.Conn) {
	in := bufio.NewReader(c)
	for {
		size, err := in.ReadString(':')
		n, numErr := strconv.Atoi(strings.TrimSuffix(size, ":"))
		if err != nil || numErr != nil {
			return
		}
		query := make([]byte, n+1)
		if _, err := io.ReadFull(in, query); err != nil {
			return
		}
		name, key, _ := strings.Cut(string(query[:n]), " ")
		s.mu.Lock()
		value, found := s.tables[name][key]
		s.mu.Unlock()
		answer := "NOTFOUND "
		if found {
			answer = "OK " + value
		}
		fmt.Fprintf(c, "%d:%s,", len(answer), answer)
	}
}

// clear forgets what came, and puts another shape's tables into the data base.
func (s *standIns) clear(tables map[string]map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.came, s.tables = nil, tables
}

// has returns the messages with that Message-ID that ended here.
func (s *standIns) has(id string) (list []Mail) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.came {
		if strings.Contains(string(m.Data), id) {
			list = append(list, m)
		}
	}
	return list
}
