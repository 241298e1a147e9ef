package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sendas/sendas/cmd/internal/classes"
	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/policy"
)

// question is a made-up message.
type question struct {
	client, login string
	subject       string // of the client certificate
	fingerprint   string
	from          string // envelope
	headerFrom    string
	to            []string
	message       string // file
	size          int    // bytes; 0 is that of the file
	json          bool
}

func cmdExplain(o *options) *cobra.Command {
	q := &question{}
	c := &cobra.Command{
		Use:   "explain --client IP --from ADDRESS",
		Short: "Say what would become of a message, and why",
		Long: `explain makes the decision that the milter would make on a message, by the same code, and
prints it with its reasons and the changes to the header. Without --header-from and --message the
From field is the envelope sender. Mail to recipients (--to) that Postfix delivers itself is none of
sendas' business; that is known from the file that "sendas postfix enable" keeps. Nothing is sent,
and no service needs to run.`,
		Example: "  sendas explain --client 10.2.0.9 --from mfp3@floor.local\n" +
			"  sendas explain --client 10.2.0.9 --from mfp3@floor.local --message scan.eml --json\n" +
			"  sendas explain --client 198.51.100.9 --from friend@example.com --to info@shop.contoso.net",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return explain(o, q) },
	}
	f := c.Flags()
	f.StringVar(&q.client, "client", "", "the `IP` address of the client")
	f.StringVar(&q.login, "login", "", "the SASL login of the client at Postfix")
	f.StringVar(&q.subject, "cert-subject", "", "the common `name` of the client's certificate, if Postfix trusts it")
	f.StringVar(&q.fingerprint, "cert-fingerprint", "", "the fingerprint of the client's certificate")
	f.StringVar(&q.from, "from", "", "the envelope sender; empty is the null sender of a bounce")
	f.StringVar(&q.headerFrom, "header-from", "", "the From field, as the device writes it")
	f.StringSliceVar(&q.to, "to", nil, "a recipient; may be given several times")
	f.StringVar(&q.message, "message", "", "a `file` with a message, of which the header and the size are used")
	f.IntVar(&q.size, "size", 0, "how many `bytes` the message has, where that makes a difference; without it, as many as the file")
	f.BoolVar(&q.json, "json", false, "print JSON")
	for _, flag := range []string{"from", "header-from"} {
		c.RegisterFlagCompletionFunc(flag, completeFirst(o, senders)) // fails for unknown flags alone
	}
	return c
}

func explain(o *options, q *question) error {
	req, err := q.request()
	if err != nil {
		return err
	}
	cfg, err := config.Load(o.config, config.SkipFiles)
	if err != nil {
		return err
	}
	if err := place(cfg, req); err != nil {
		return err
	}
	// As in the milter: what SMTP clients send has been asked about at RCPT, mail of this host not.
	req.Routed = cfg.Milter.PolicyListen != "" && !req.Peer.Addr.IsLoopback() && tellsWay(cfg.Policy, req)
	d := cfg.Policy.Decide(req)
	if q.json {
		e := json.NewEncoder(o.stdout)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		a := answerOf(&d)
		if cfg.Observes() {
			a.Mode = policy.Observe
		}
		a.Limits = limitsFor(cfg, &d)
		return e.Encode(a)
	}
	if cfg.Observes() {
		fmt.Fprintln(o.stdout, observeNote)
	}
	writeAnswer(o.stdout, req, &d, limitsFor(cfg, &d))
	return nil
}

// observeNote stands above a decision that is not carried out.
const observeNote = "mode      observe: nothing is changed or refused; this is what would become of it"

// place says what becomes of the recipients, as far as it can be told without Postfix: what
// "sendas postfix enable" has kept.
func place(c *config.Site, r *policy.Request) error {
	if len(r.Rcpts) == 0 {
		return nil
	}
	data, err := classes.Load(c.Milter.ClassesFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return exit.Errorf(exit.Failed, "", "which recipients Postfix delivers itself: %w", err)
	}
	known := policy.NewClasses(data)
	for _, to := range r.Rcpts {
		r.Places = append(r.Places, c.Policy.Place(known, to, policy.Hint{}))
	}
	return nil
}

// tellsWay reports whether the policy service tells Postfix the way out at one of the recipients.
func tellsWay(p *policy.Rules, r *policy.Request) bool {
	if len(r.Rcpts) == 0 {
		f := p.Foresee(&policy.Request{Peer: r.Peer, Sender: r.Sender})
		return f.Filter != ""
	}
	for i, to := range r.Rcpts {
		one := policy.Request{Peer: r.Peer, Sender: r.Sender, Rcpts: []string{to}}
		if i < len(r.Places) {
			one.Places = r.Places[i : i+1]
		}
		if f := p.Foresee(&one); f.Reply == nil && f.Filter != "" {
			return true
		}
	}
	return false
}

// request turns the flags into what the milter would see.
func (q *question) request() (*policy.Request, error) {
	if q.client+q.login+q.subject+q.fingerprint == "" {
		return nil, exit.Errorf(exit.Usage, "for example: sendas explain --client 10.2.0.9 --from mfp3@floor.local",
			"who sends? --client, --login, --cert-subject or --cert-fingerprint is missing")
	}
	r := &policy.Request{Sender: q.from, Rcpts: q.to, QueueID: "QUEUEID", Now: time.Now(),
		Peer: policy.Peer{Login: q.login, Subject: q.subject, Fingerprint: q.fingerprint}}
	if q.client != "" {
		a, err := netip.ParseAddr(q.client)
		if err != nil {
			return nil, exit.Errorf(exit.Usage, "write the address that Postfix logs, such as 10.2.0.9", "--client: %q is no IP address", q.client)
		}
		r.Peer.Addr = a
	}
	switch {
	case q.message != "" && q.headerFrom != "":
		return nil, exit.Errorf(exit.Usage, "leave one of the two out", "--message and --header-from both say what From is")
	case q.message != "":
		f, err := os.Open(q.message)
		if err != nil {
			return nil, exit.Errorf(exit.Usage, "", "--message: %w", err)
		}
		defer f.Close()
		size := &counter{r: f}
		err = readFields(size, r)
		if err == nil {
			_, err = io.Copy(io.Discard, size)
		}
		if err != nil {
			return nil, exit.Errorf(exit.Usage, "", "--message: reading %s: %w", q.message, err)
		}
		r.Size = size.n
	case q.headerFrom != "":
		r.Fields = []policy.Field{{Name: "From", Value: q.headerFrom}}
	case q.from != "":
		r.Fields = []policy.Field{{Name: "From", Value: q.from}}
	}
	if q.size > 0 {
		r.Size = q.size
	}
	return r, nil
}

// counter counts what is read through it.
type counter struct {
	r io.Reader
	n int
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

// readFields reads the header of a message as Postfix hands it to a milter: folds kept with a bare
// LF, one blank after the colon dropped.
func readFields(message io.Reader, r *policy.Request) error {
	var name string
	var value strings.Builder
	for s := bufio.NewReader(message); ; {
		line, err := s.ReadString('\n')
		if err != nil && err != io.EOF {
			return err
		}
		text := strings.TrimRight(line, "\r\n")
		if text != "" && (text[0] == ' ' || text[0] == '\t') {
			value.WriteString("\n" + text)
			continue
		}
		next, first, ok := strings.Cut(text, ":")
		if text != "" && !ok {
			continue
		}
		if name != "" {
			r.AddField(name, value.String())
		}
		if text == "" {
			return nil // the end of the header, or of the file
		}
		name = strings.TrimRight(next, " \t")
		value.Reset()
		value.WriteString(strings.TrimPrefix(first, " "))
	}
}

// answer is the decision as JSON. Its keys are stable.
type answer struct {
	Mode     policy.Mode    `json:"mode,omitempty"` // observe: the rest is what would become of it
	Action   policy.Action  `json:"action"`
	Client   string         `json:"client"` // "" where none matched
	Asked    string         `json:"asked"`
	Identity string         `json:"identity"`       // "" when rejected
	Mailbox  string         `json:"mailbox"`        // of a pool, the first one
	Pool     int            `json:"pool,omitempty"` // how many mailboxes it has; none where one mailbox alone may send as the identity
	Route    string         `json:"route"`
	External string         `json:"external_route"`    // of recipients outside, where route does not reach them
	NoBounce bool           `json:"no_bounce"`         // a bounce of it would be discarded
	Discard  bool           `json:"discard,omitempty"` // it is such a bounce, and ends here
	Sender   string         `json:"sender"`            // the new envelope sender; "" when it stays
	Reply    string         `json:"reply"`             // "" when accepted
	Limits   []answerLimit  `json:"limits"`            // that such a message counts for
	Reasons  []answerReason `json:"reasons"`
	Changes  []answerChange `json:"changes"`
}

type answerReason struct {
	Code policy.ReasonCode `json:"code"`
	Text string            `json:"text"`
}

type answerChange struct {
	Op    policy.Op `json:"op"`
	Name  string    `json:"name"`
	Index int       `json:"index"` // among the fields of that name, from 1; 0 for a new one
	Value string    `json:"value"`
}

func answerOf(d *policy.Decision) answer {
	a := answer{Action: d.Action, Asked: d.Asked.String(), Identity: d.Identity.String(), Sender: d.Sender, Mailbox: d.User.String(), NoBounce: d.NoBounce, Discard: d.Discard,
		Limits: []answerLimit{}, Reasons: []answerReason{}, Changes: []answerChange{}}
	if d.Client != nil {
		a.Client = d.Client.Name
	}
	if d.Route != nil {
		a.Route = d.Route.Name
	}
	if d.External != nil {
		a.External = d.External.Name
	}
	if d.Pool > 1 {
		a.Pool = d.Pool
	}
	if d.Reply != nil {
		a.Reply = d.Reply.String()
	}
	for _, r := range d.Reasons {
		a.Reasons = append(a.Reasons, answerReason{r.Code, r.String()})
	}
	for _, c := range d.Changes {
		a.Changes = append(a.Changes, answerChange{c.Op, c.Name, c.Index, c.Value})
	}
	return a
}

// writeAnswer prints the decision for a person, the changes as a diff.
func writeAnswer(w io.Writer, r *policy.Request, d *policy.Decision, limits []answerLimit) {
	a := answerOf(d)
	for _, row := range [][2]string{{"action", string(a.Action)}, {"reply", a.Reply}, {"client", a.Client}, {"asked", a.Asked},
		{"identity", a.Identity}, {"mailbox", d.Through()}, {"route", a.Route}, {"external", a.External}} {
		if row[1] != "" {
			fmt.Fprintf(w, "%-9s %s\n", row[0], row[1])
		}
	}
	for _, l := range limits {
		fmt.Fprintf(w, "%-9s %s\n", "limits", l)
	}
	fmt.Fprintln(w, "because")
	for i, x := range a.Reasons {
		fmt.Fprintf(w, "  %d. %s\n", i+1, x.Text)
	}
	if len(a.Changes) == 0 && a.Sender == "" {
		return
	}
	fmt.Fprintln(w, "changes")
	if a.Sender != "" {
		fmt.Fprintf(w, "- MAIL FROM:<%s>\n+ MAIL FROM:<%s>\n", strings.Trim(r.Sender, "<>"), a.Sender)
	}
	for _, c := range a.Changes {
		if c.Op != policy.Add {
			fmt.Fprintf(w, "- %s: %s\n", c.Name, visible(fieldAt(r.Fields, c.Name, c.Index)))
		}
		if c.Op != policy.Delete {
			fmt.Fprintf(w, "+ %s: %s\n", c.Name, visible(c.Value))
		}
	}
}

// fieldAt returns the body of the index-th field of that name.
func fieldAt(list []policy.Field, name string, index int) string {
	for _, f := range list {
		if strings.EqualFold(f.Name, name) {
			if index--; index == 0 {
				return f.Value
			}
		}
	}
	return ""
}

// visible keeps a stranger's bytes from the terminal: folds stay, what does not print is shown as
// its code.
func visible(s string) string {
	var b strings.Builder
	for line := range strings.SplitSeq(s, "\n") {
		if b.Len() > 0 {
			b.WriteString("\n  ")
		}
		q := fmt.Sprintf("%q", strings.ReplaceAll(line, "\t", " "))
		b.WriteString(strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(q[1 : len(q)-1]))
	}
	return b.String()
}
