package lease

import (
	"context"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/sendas/sendas/token/ledger"
)

// scrapeTime bounds how long the ledger is asked for one scrape: Prometheus waits 10 s, and what
// else there is to show is shown in any case.
const scrapeTime = 2 * time.Second

// A Collector shows the state of the token service as series. It looks when it is asked, so a
// message costs nothing more, and mailboxes and credentials that have left the configuration are
// gone at once.
type Collector struct {
	leases *Lessor
	status func(context.Context) *Status
}

// NewCollector makes the collector of a lease desk and of what [Lessor.Status] says about it with
// the configuration in force.
func NewCollector(l *Lessor, status func(context.Context) *Status) *Collector {
	return &Collector{leases: l, status: status}
}

// stateSeries describes a gauge of the state.
func stateSeries(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// The series of the state. A mailbox has eight at all times; what tells of trouble is there while it
// lasts. Of a mailbox that is a pattern, used and left are missing: each sender has limits of its
// own, and their addresses are strangers'.
var (
	ledgerUp = stateSeries("sendas_ledger_up", "1 if the store that keeps what the mailboxes have sent answered just now, else 0.")

	messagesUsed    = stateSeries("sendas_mailbox_messages_used", "Messages in the period of the mailbox's message limit, those under way included.", "mailbox")
	messagesLimit   = stateSeries("sendas_mailbox_messages_limit", "Messages that the mailbox may send in any period of its message limit, a minute as a rule.", "mailbox")
	messagesLeft    = stateSeries("sendas_mailbox_messages_left", "Messages that the mailbox may still send now.", "mailbox")
	recipientsUsed  = stateSeries("sendas_mailbox_recipients_used", "Recipients in the period of the mailbox's recipient limit.", "mailbox")
	recipientsLimit = stateSeries("sendas_mailbox_recipients_limit", "Recipients that the mailbox may send to in any period of its recipient limit, 24 hours as a rule.", "mailbox")
	recipientsLeft  = stateSeries("sendas_mailbox_recipients_left", "Recipients that the mailbox may still send to now.", "mailbox")

	groupUsed  = stateSeries("sendas_group_recipients_used", "External recipients in the period of a limit that mailboxes have together.", "group")
	groupLimit = stateSeries("sendas_group_recipients_limit", "External recipients that those mailboxes may send to in any such period, 24 hours as a rule.", "group")
	groupLeft  = stateSeries("sendas_group_recipients_left", "External recipients that those mailboxes may still send to now.", "group")

	leasesOut        = stateSeries("sendas_mailbox_leases", "Leases of the mailbox that are out on this host now.", "mailbox")
	connectionsLimit = stateSeries("sendas_mailbox_connections_limit", "Leases of the mailbox that may be out at one time, by the configuration.", "mailbox")
	connectionsNow   = stateSeries("sendas_mailbox_connections_in_force", "Leases of the mailbox that may be out now, for as long as they are fewer, after a 432.", "mailbox")
	nextLease        = stateSeries("sendas_mailbox_next_lease_timestamp_seconds", "When the mailbox can send next, where that is known and not at once.", "mailbox")
	pausedUntil      = stateSeries("sendas_mailbox_paused_until_timestamp_seconds", "Until when the mailbox rests, and why, for as long as it does.", "mailbox", "reason")
	sendersHeld      = stateSeries("sendas_mailbox_senders_held", "Senders whose mail waits because Exchange Online does not let the mailbox send as them, while there are any.", "mailbox")

	tokenExpiry  = stateSeries("sendas_token_expiry_timestamp_seconds", "When the access token in memory ends; 0 without one.", "credential")
	lastSuccess  = stateSeries("sendas_token_last_success_timestamp_seconds", "When an access token was last got; 0 if never since the start.", "credential")
	clockSkew    = stateSeries("sendas_clock_skew_seconds", "How far this machine's clock is ahead of Entra's.", "credential")
	certExpiry   = stateSeries("sendas_certificate_expiry_timestamp_seconds", "When the certificate of a credential ends.", "credential")
	certRenewed  = stateSeries("sendas_certificate_renewed", "1 while the service can replace a credential's certificate before it ends, 0 while that fails.", "credential")
	secretExpiry = stateSeries("sendas_client_secret_expiry_timestamp_seconds", "When the client secret of a credential ends, as the configuration says.", "credential")
	otherExpiry  = stateSeries("sendas_federated_token_expiry_timestamp_seconds", "When the token of another issuer ends that stands for a credential.", "credential")
	signInExpiry = stateSeries("sendas_sign_in_expiry_timestamp_seconds", "When the sign-in of a user ends unless it is renewed; 0 while nobody has signed in, and while Microsoft refuses it.", "credential")
	signInFresh  = stateSeries("sendas_sign_in_renewed", "1 if the last refresh of a user's sign-in brought a new refresh token, else 0.", "credential")

	stateDescs = []*prometheus.Desc{ledgerUp, messagesUsed, messagesLimit, messagesLeft, recipientsUsed, recipientsLimit, recipientsLeft,
		groupUsed, groupLimit, groupLeft, leasesOut,
		connectionsLimit, connectionsNow, nextLease, pausedUntil, sendersHeld, tokenExpiry, lastSuccess, clockSkew, certExpiry, certRenewed, secretExpiry, otherExpiry, signInExpiry, signInFresh}
)

// pauseAuth is the class of a rest that the ledger knows nothing of: Exchange Online refused the
// token or the mailbox.
const pauseAuth ledger.PauseClass = "auth"

// pauseReasons are the label values; a class of a later version is counted as other.
var pauseReasons = []ledger.PauseClass{ledger.PauseQuota, ledger.PauseFull, ledger.PauseBlocked, ledger.PauseThrottled, pauseAuth, ledger.PauseOther}

// Describe implements [prometheus.Collector].
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range stateDescs {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
	defer cancel()
	s := c.status(ctx)
	up := 1.0
	if s.LedgerError != nil {
		up = 0
		c.leases.metrics.ledger.WithLabelValues(opUsage).Inc()
	}
	out := sink{ch}
	out.gauge(ledgerUp, up)
	rests := c.leases.rests(time.Now())
	for i := range s.Mailboxes {
		out.mailbox(&s.Mailboxes[i], rests[s.Mailboxes[i].Mailbox])
	}
	for _, g := range s.Groups {
		out.gauge(groupUsed, float64(g.Recipients.Used), g.Name)
		out.gauge(groupLimit, float64(g.Recipients.Limit), g.Name)
		out.gauge(groupLeft, float64(g.Recipients.Left), g.Name)
	}
	for i := range s.Credentials {
		out.credential(&s.Credentials[i])
	}
}

// rests returns until when mailboxes rest after a refused AUTH.
func (l *Lessor) rests(now time.Time) map[string]time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := make(map[string]time.Time, len(l.refusals))
	for mailbox, r := range l.refusals {
		if now.Before(r.until) {
			m[mailbox] = r.until
		}
	}
	return m
}

// sink sends series.
type sink struct{ ch chan<- prometheus.Metric }

func (o sink) gauge(d *prometheus.Desc, v float64, labels ...string) {
	o.ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

// of sends a series of a mailbox.
func (o sink) of(mailbox []*dto.LabelPair, d *prometheus.Desc, v float64) {
	o.ch <- &mailboxGauge{desc: d, labels: mailbox, value: v}
}

// A mailboxGauge is a value with the label of its mailbox, which all series of that mailbox share:
// with a thousand of them the copies would be most of the memory of a scrape.
type mailboxGauge struct {
	desc   *prometheus.Desc
	labels []*dto.LabelPair
	value  float64
}

// Desc implements [prometheus.Metric].
func (g *mailboxGauge) Desc() *prometheus.Desc { return g.desc }

// Write implements [prometheus.Metric].
func (g *mailboxGauge) Write(m *dto.Metric) error {
	m.Label, m.Gauge = g.labels, &dto.Gauge{Value: &g.value}
	return nil
}

// mailboxLabel is the name of the label.
var mailboxLabel = "mailbox"

// when sends a moment; 0 for none.
func (o sink) when(d *prometheus.Desc, t *time.Time, labels ...string) {
	v := 0.0
	if t != nil && !t.IsZero() {
		v = float64(t.Unix())
	}
	o.gauge(d, v, labels...)
}

func (o sink) mailbox(m *MailboxStatus, refused time.Time) {
	name := []*dto.LabelPair{{Name: &mailboxLabel, Value: &m.Mailbox}}
	o.of(name, leasesOut, float64(m.Leases))
	o.of(name, connectionsLimit, float64(m.Connections))
	held := 0
	for _, d := range m.Denied {
		if d.Held {
			held++
		}
	}
	if held > 0 {
		o.of(name, sendersHeld, float64(held))
	}
	if u := m.Messages; u != nil { // else it is a pattern, has no limit, or the ledger cannot tell
		o.of(name, messagesUsed, float64(u.Used))
		o.of(name, messagesLimit, float64(u.Limit))
		o.of(name, messagesLeft, float64(u.Left))
	}
	if u := m.Recipients; u != nil {
		o.of(name, recipientsUsed, float64(u.Used))
		o.of(name, recipientsLimit, float64(u.Limit))
		o.of(name, recipientsLeft, float64(u.Left))
	}
	if m.InForce < m.Connections {
		o.of(name, connectionsNow, float64(m.InForce))
	}
	if m.Next != nil {
		o.when(nextLease, m.Next, m.Mailbox)
	}
	if !refused.IsZero() {
		o.when(pausedUntil, &refused, m.Mailbox, string(pauseAuth))
	}
	if m.PausedUntil != nil {
		o.when(pausedUntil, m.PausedUntil, m.Mailbox, string(pauseReason(m.PauseClass)))
	}
}

// pauseReason returns the label value of a class that the ledger has.
func pauseReason(c ledger.PauseClass) ledger.PauseClass {
	if slices.Contains(pauseReasons, c) && c != pauseAuth { // which is no pause of the ledger
		return c
	}
	return ledger.PauseOther
}

func (o sink) credential(c *CredentialStatus) {
	if p := c.Proof; p != nil && p.Ends != nil {
		switch p.Kind {
		case "certificate":
			o.when(certExpiry, p.Ends, c.Name)
		case "secret":
			o.when(secretExpiry, p.Ends, c.Name)
		default:
			o.when(otherExpiry, p.Ends, c.Name)
		}
	}
	if p := c.Proof; p != nil && p.Renewal != nil {
		renewed := 1.0
		if p.Renewal.Failing != nil {
			renewed = 0
		}
		o.gauge(certRenewed, renewed, c.Name)
	}
	if !c.InUse {
		return // it gets no token
	}
	if u := c.SignIn; u != nil {
		end, renewed := u.Ends, 1.0
		if u.Refused != nil {
			end = nil
		}
		if u.Kept {
			renewed = 0
		}
		o.when(signInExpiry, end, c.Name)
		if u.Since != nil {
			o.gauge(signInFresh, renewed, c.Name)
		}
	}
	var expires *time.Time
	if c.Token.Live {
		expires = c.Token.Expires
	}
	o.when(tokenExpiry, expires, c.Name)
	o.when(lastSuccess, c.Refresh.LastSuccess, c.Name)
	if c.Refresh.LastSuccess != nil {
		o.gauge(clockSkew, c.Skew, c.Name)
	}
}
