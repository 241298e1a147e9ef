package doctor

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	protocol "github.com/d--j/go-milter"

	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/postfix"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/internal/serve"
	"github.com/sendas/sendas/milter"
	"github.com/sendas/sendas/token/lease"
)

// socketTime bounds one question to a service.
const socketTime = 10 * time.Second

// socketAdvice is about the sockets of both services.
var socketAdvice = map[string]finding.Advice{
	"no-socket":       {Means: "nobody has made the socket: the service {service} does not run, or listens elsewhere", Do: "systemctl start sendas-{service}; its log: journalctl -u sendas-{service}"},
	"refused":         {Means: "nobody listens: the service {service} has ended", Do: "systemctl restart sendas-{service}; its log: journalctl -u sendas-{service}"},
	"forbidden":       {Means: "this user may not connect", Do: "run this as root; Postfix itself needs mode 0755 of the folder, and of the socket 0660 with its own group, or 0666"},
	"silent":          {Means: "somebody listens, but does not answer in {time}", Do: "systemctl restart sendas-{service}; its log: journalctl -u sendas-{service}"},
	"foreign":         {Means: "another program answers", Do: "compare {key} in sendas.yaml with what the other program listens on"},
	"enforces":        {Means: "sendas.yaml says milter.mode: observe, and the milter that runs changes and refuses mail", Do: "systemctl reload sendas-milter"},
	"observes":        {Means: "sendas.yaml does not say milter.mode: observe, and the milter that runs changes nothing: senders reach Microsoft as devices write them", Do: "systemctl reload sendas-milter"},
	"open":            {Means: "root is among token.peers: any program of root's may ask for tokens", Do: "take root out of token.peers in sendas.yaml"},
	"not-ready":       {Means: "the service runs, but cannot do its work yet", Do: "systemctl status sendas-{service}; \"sendas status\" shows each credential"},
	"other-not-ready": {Means: "another credential has no token; that of {mailbox} has one", Do: "sendas status"},
	"health":          {Means: "the service answers on its socket, but not here", Do: "compare {key} in sendas.yaml with: ss -tlnp"},
}

// checkSockets speaks to both services as Postfix does, but asks for nothing.
func (d *Walk) checkSockets(ctx context.Context) {
	c, s := d.config, d.Section("sockets", "socket")
	if c == nil {
		s.Skip("all", "", "there is no usable configuration")
		return
	}
	d.probe(ctx, s, "milter", "milter.listen", "milter", c.Milter.Listen, d.probeMilter)
	if c.Observes() {
		d.checkHealth(ctx, s, "milter", c.Milter.HTTP)
		s.Skip("token", "token service, policy service", "sendas only observes, so nobody asks them")
		return
	}
	if c.Milter.PolicyListen == "" {
		s.Skip("policy", "policy", "is switched off (milter.policy_listen)")
	} else if d.failed("sockets.milter") && !listening(ctx, d, c.Milter.PolicyListen) {
		s.Skip("policy", c.Milter.PolicyListen.String(), "nobody listens either, as said above")
	} else {
		d.probe(ctx, s, "policy", "milter.policy_listen", "milter", c.Milter.PolicyListen, probePolicy)
	}
	d.probe(ctx, s, "credentials", "token.listen", "token", c.Token.Listen, probeCredentials)
	d.checkHealth(ctx, s, "milter", c.Milter.HTTP)
	d.checkHealth(ctx, s, "token", c.Token.HTTP)
	d.checkReplies(ctx, s, c)
}

// listening reports whether somebody takes connections there.
func listening(ctx context.Context, d *Walk, at serve.Address) bool {
	network, addr := at.Network()
	c, err := d.dial(ctx, network, addr)
	if err == nil {
		c.Close()
	}
	return err == nil
}

// CheckOthers looks at what "sendas postfix enable" depends on besides Postfix: the plugin, and the
// services. Without the milter devices are turned away by a Postfix that runs; without the token
// service mail waits. Where Postfix does not run, nobody is turned away, and what is missing is said.
func CheckOthers(ctx context.Context, w *world, r *finding.Report, p *postfix.Setup, running bool) {
	d := New(&Options{Json: true}, w)
	d.config, d.postfix = p.Config, p
	if d.observes() {
		d.checkWatcher(ctx, running)
	} else {
		d.checkPlugin(ctx)
		d.checkListeners(ctx, running)
	}
	r.Checks = append(r.Checks, d.Checks...)
}

// startTime is how long a service that is being started is waited for.
const startTime = 3 * time.Second

// checkListeners asks the services whether they are there.
func (d *Walk) checkListeners(ctx context.Context, running bool) {
	s := d.Section("sockets", "socket")
	if running {
		d.awaitListener(ctx, d.config.Milter.Listen)
	}
	at := len(d.Checks)
	d.probe(ctx, s, "milter", "milter.listen", "milter", d.config.Milter.Listen, d.probeMilter)
	if running {
		at = len(d.Checks)
	}
	d.probe(ctx, s, "credentials", "token.listen", "token", d.config.Token.Listen, probeCredentials)
	for i := range d.Checks[at:] {
		if k := &d.Checks[at+i]; k.Status == finding.Fail {
			k.Status = finding.Warn
		}
	}
}

// checkWatcher asks a milter that only observes whether it is there. Mail goes on without it; in the
// way is one that does more.
func (d *Walk) checkWatcher(ctx context.Context, running bool) {
	if running {
		d.awaitListener(ctx, d.config.Milter.Listen)
	}
	at := len(d.Checks)
	d.probe(ctx, d.Section("sockets", "socket"), "milter", "milter.listen", "milter", d.config.Milter.Listen, d.probeMilter)
	for i := range d.Checks[at:] {
		if k := &d.Checks[at+i]; k.Status == finding.Fail && k.Found != wrongMode {
			k.Status = finding.Warn
		}
	}
}

// awaitListener waits a little for a service that is being started to listen.
func (d *Walk) awaitListener(ctx context.Context, at serve.Address) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	network, addr := at.Network()
	for {
		c, err := d.dial(ctx, network, addr)
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(startTime / 30):
		}
	}
}

// A probeResult says what a service answered.
type probeResult struct {
	status finding.Status
	found  string
	key    string // of socketAdvice
}

// probe connects to a socket and asks a question that changes nothing.
func (d *Walk) probe(ctx context.Context, s finding.Section, id, key, service string, at serve.Address, ask func(net.Conn) (probeResult, error)) {
	ctx, cancel := context.WithTimeout(ctx, socketTime)
	defer cancel()
	network, addr := at.Network()
	listen := at.String()
	fill := func(fault string) finding.Advice {
		return socketAdvice[fault].With("service", service, "key", key, "time", socketTime.String())
	}
	c, err := d.dial(ctx, network, addr)
	if err != nil {
		s.Fail(id, listen, rootCause(err), fill(dialFault(err)))
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(socketTime))
	r, err := ask(c)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.Fail(id, listen, "gives no answer", fill("silent"))
	case err != nil:
		s.Fail(id, listen, rootCause(err), fill("foreign"))
	case r.status == finding.OK:
		s.Ok(id, listen, "%s", r.found)
	default:
		s.Note(r.status, id, listen, r.found, fill(r.key))
	}
}

// dialFault names the reason for which nobody could be reached.
func dialFault(err error) string {
	switch {
	case errors.Is(err, syscall.ENOENT):
		return "no-socket"
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return "forbidden"
	}
	return "refused"
}

// rootCause drops from an error what the line says already.
func rootCause(err error) string {
	if e, ok := errors.AsType[*os.SyscallError](err); ok {
		return e.Err.Error()
	}
	return err.Error()
}

// The milter protocol, as far as its first packet goes (Postfix's src/milter/milter8.c).
const (
	milterVersion   = 6
	milterNegotiate = 'O'
	milterQuit      = 'Q'
	maxMilterPacket = 64 << 10
)

// ourActions are what the milter of sendas asks to be allowed to do, besides naming the macros that
// it wants. Few other milters ask for just that.
const ourActions = uint32(milter.Actions)

// wrongMode is what is found of a milter that runs in another mode than the configuration has.
const wrongMode = "the milter of sendas answers, in another mode than sendas.yaml has"

// probeMilter offers all that Postfix offers, and reads what the milter wants of it.
func (d *Walk) probeMilter(c net.Conn) (probeResult, error) {
	offer := binary.BigEndian.AppendUint32(nil, 13)
	offer = append(offer, milterNegotiate)
	offer = binary.BigEndian.AppendUint32(offer, milterVersion)
	offer = binary.BigEndian.AppendUint32(offer, 0x1ff)    // every action
	offer = binary.BigEndian.AppendUint32(offer, 0x1fffff) // every way to leave something out
	if _, err := c.Write(offer); err != nil {
		return probeResult{}, err
	}
	var head [4]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return probeResult{}, endedEarly(err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 13 || n > maxMilterPacket {
		return probeResult{}, errors.New("what answers is no milter")
	}
	packet := make([]byte, n)
	if _, err := io.ReadFull(c, packet); err != nil {
		return probeResult{}, endedEarly(err)
	}
	c.Write([]byte{0, 0, 0, 1, milterQuit}) // it closes either way
	actions := binary.BigEndian.Uint32(packet[5:9]) &^ uint32(protocol.OptSetMacros)
	if packet[0] != milterNegotiate || actions != ourActions {
		return probeResult{}, fmt.Errorf("what answers is another milter (it asks for the actions %#x)", actions)
	}
	switch observes := milter.ObservesBy(protocol.OptProtocol(binary.BigEndian.Uint32(packet[9:13]))); {
	case observes && !d.observes():
		return probeResult{status: finding.Fail, found: wrongMode, key: "observes"}, nil
	case !observes && d.observes():
		return probeResult{status: finding.Fail, found: wrongMode, key: "enforces"}, nil
	case observes:
		return probeResult{status: finding.OK, found: "the milter of sendas answers, and only observes"}, nil
	}
	return probeResult{status: finding.OK, found: "the milter of sendas answers"}, nil
}

// probeQuery is a request that is nobody's: it names neither client nor sender nor recipient, and is
// not counted as one of theirs.
const probeQuery = "request=smtpd_access_policy\nprotocol_state=RCPT\nprotocol_name=ESMTP\n\n"

func probePolicy(c net.Conn) (probeResult, error) {
	if _, err := io.WriteString(c, probeQuery); err != nil {
		return probeResult{}, err
	}
	line, err := bufio.NewReader(io.LimitReader(c, 4096)).ReadString('\n')
	if err != nil {
		return probeResult{}, endedEarly(err)
	}
	action, ok := strings.CutPrefix(strings.TrimSpace(line), "action=")
	if !ok {
		return probeResult{}, errors.New("what answers is no policy service")
	}
	return probeResult{status: finding.OK, found: "answers " + action}, nil
}

// probeCredentials knocks. Whoever is not in token.peers is sent away at once, root too: that is an
// answer.
func probeCredentials(c net.Conn) (probeResult, error) {
	if _, err := fmt.Fprintf(c, "%d:%s,", len(lease.Knock), lease.Knock); err != nil && !sentAway(err) {
		return probeResult{}, err
	}
	length, err := bufio.NewReader(io.LimitReader(c, 4096)).ReadString(',')
	switch {
	case length == "" && sentAway(err):
		return probeResult{status: finding.OK, found: "is served, and sends this user away, who is not in token.peers: only Postfix may ask"}, nil
	case err != nil:
		return probeResult{}, endedEarly(err)
	}
	_, answer, ok := strings.Cut(length, ":")
	if !ok || !strings.HasPrefix(answer, "NOTFOUND") && !strings.HasPrefix(answer, "OK ") {
		return probeResult{}, errors.New("what answers is not the token service of sendas")
	}
	if os.Geteuid() == 0 {
		return probeResult{status: finding.Warn, found: "answers root", key: "open"}, nil
	}
	return probeResult{status: finding.OK, found: "answers"}, nil
}

// sentAway reports whether the other side closed the connection.
func sentAway(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// endedEarly words an end before the answer.
func endedEarly(err error) error {
	if sentAway(err) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the connection was closed without an answer")
	}
	return err
}

// checkHealth asks a service how it feels.
func (d *Walk) checkHealth(ctx context.Context, s finding.Section, service, addr string) {
	if addr == "" {
		s.Skip("http."+service, "http of "+service, "is switched off (%s.http)", service)
		return
	}
	client := &http.Client{Timeout: socketTime, Transport: &http.Transport{DialContext: d.dial, DisableKeepAlives: true}}
	fill := func(key string) finding.Advice {
		return socketAdvice[key].With("service", service, "key", service+".http")
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		id, what := "http."+service+"."+path[1:], "http://"+addr+path
		status, body, err := get(ctx, client, what)
		switch {
		case err != nil && d.failed(map[string]string{"milter": "sockets.milter", "token": "sockets.credentials"}[service]):
			s.Skip(id, what, "%s, as said above", rootCause(err))
			return
		case err != nil:
			s.Fail(id, what, rootCause(err), fill("health"))
			return // the other one would say the same
		case status == http.StatusServiceUnavailable && d.ownTokenLives(ctx, client, addr):
			s.Warn(id, what, body, fill("other-not-ready").With("mailbox", d.Mailbox))
		case status == http.StatusServiceUnavailable:
			s.Fail(id, what, body, fill("not-ready"))
		case status != http.StatusOK:
			s.Fail(id, what, fmt.Sprintf("HTTP %d", status), fill("foreign"))
		default:
			s.Ok(id, what, "%s", body)
		}
	}
}

// ownTokenLives reports whether the token service has a token for the mailbox that the user named,
// so that it is another credential's that is missing.
func (d *Walk) ownTokenLives(ctx context.Context, client *http.Client, addr string) bool {
	name := d.ownCredential()
	if name == "" {
		return false
	}
	b, err := service.Fetch(ctx, client, addr, "/status")
	var s lease.Status
	if err != nil || json.Unmarshal(b, &s) != nil {
		return false
	}
	return slices.ContainsFunc(s.Credentials, func(c lease.CredentialStatus) bool { return c.Name == name && c.Token.Live })
}

func get(ctx context.Context, client *http.Client, url string) (status int, body string, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := client.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 2000))
	return resp.StatusCode, string(b), err
}
