package doctor

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/textproto"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/postfix"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/address"
)

// entranceAdvice is about the way into Postfix, as a client goes it.
var entranceAdvice = map[string]finding.Advice{
	"no-port":  {Means: "master.cf has no smtpd that takes mail over the network, so no client can hand any in", Do: "{postconf} -M smtp/inet='smtp inet n - y - - smtpd' && {postfix} reload"},
	"closed":   {Means: "nobody listens there, so no client can hand mail in", Do: "{postfix} start; its log: {log}"},
	"not-smtp": {Means: "what answers there is not Postfix", Do: "ss -tlnp, and compare with master.cf"},
	"no-xclient": {Means: "Postfix lets nobody on this host speak for {client} (XCLIENT), and {addr} is no address of this host",
		Do: "{postconf} -e '{set}' && {postfix} reload; when it is proved, {postconf} {unset} && {postfix} reload"},
	"stranger": {Means: "no client of sendas.yaml may ask for {identity}, so nobody can send as it", Do: "name it in senders: or from: of a client, or take it out of send_as: of its mailbox"},
	"no-milter": {Means: "Postfix cannot ask the milter or the policy service, and takes no mail without them",
		Do: "systemctl restart sendas-milter; its log: journalctl -u sendas-milter"},
	"relay":  {Means: "Postfix does not relay for {addr}: it is not in mynetworks, and has not logged in", Do: "{mynetworks}"},
	"ours":   {Means: "sendas refuses it", Do: "sendas explain --client {addr} --from {identity}"},
	"config": {Means: "a setting of Postfix's is wrong, or a service that it asks is away", Do: "look into its log: {log}"},
	"full":   {Means: "the disk of the queue is full, or nearly", Do: "df -h {queue}; make room, or lower queue_minfree"},
	"strict": {Means: "a restriction of Postfix's own refuses it before sendas is asked", Do: "{postconf} -n | grep restrictions; the log names the one that refused: {log}"},
	"login":  {Means: "clients have to log in or begin TLS at this port", Do: "let clients use another port, or log in; {postconf} -n | grep smtpd_"},
}

// noXclient is the advice where nobody may be played.
const noXclient = "no-xclient"

// A visitor is as whom the doctor speaks to Postfix.
type visitor struct {
	peer   policy.Peer
	client string // of sendas.yaml; "" is nobody
}

func (v *visitor) String() string {
	who := cmp.Or(v.client, "nobody's client")
	if v.peer.Login != "" {
		return fmt.Sprintf("%s (%s, login %s)", who, v.peer.Addr, v.peer.Login)
	}
	return fmt.Sprintf("%s (%s)", who, v.peer.Addr)
}

// thisHost is the peer that needs no play.
var thisHost = policy.Peer{Addr: netip.AddrFrom4([4]byte{127, 0, 0, 1})}

// peerOf makes a peer that is a client of sendas.yaml; ok is false where a certificate would have to
// be shown.
func peerOf(c *config.Client) (p policy.Peer, ok bool) {
	p = thisHost
	if len(c.Networks) > 0 {
		net, err := netip.ParsePrefix(c.Networks[0])
		if err != nil {
			addr, err := netip.ParseAddr(c.Networks[0])
			return policy.Peer{Addr: addr, Login: loginOf(c)}, err == nil && len(c.Subjects)+len(c.Fingerprints) == 0
		}
		if p.Addr = net.Masked().Addr(); net.Bits() < p.Addr.BitLen() {
			p.Addr = p.Addr.Next() // the first address is the network's name
		}
	}
	p.Login = loginOf(c)
	return p, len(c.Subjects)+len(c.Fingerprints) == 0
}

func loginOf(c *config.Client) string {
	switch {
	case len(c.Logins) == 0:
		return ""
	case c.Logins[0] == "*":
		return "doctor"
	}
	return c.Logins[0]
}

// named is the visitor that --client says: an address, or the name of a client.
func (d *Walk) named(name, identity string) (visitor, error) {
	p := policy.Peer{}
	i := slices.IndexFunc(d.config.Clients, func(c config.Client) bool { return strings.EqualFold(c.Name, name) })
	switch addr, err := netip.ParseAddr(name); {
	case err == nil:
		p.Addr = addr.Unmap()
	case i < 0:
		return visitor{}, exit.Errorf(exit.Usage, "for example: sendas doctor --client 10.2.0.9", "--client: %q is neither an IP address nor a client of sendas.yaml", config.Clip(name))
	default:
		var ok bool
		if p, ok = peerOf(&d.config.Clients[i]); !ok {
			return visitor{}, exit.Errorf(exit.Usage, "send a message with that client itself", "--client: %s proves itself by a certificate, which only it has", d.config.Clients[i].Name)
		}
	}
	return d.visitor(p, identity), nil
}

func (d *Walk) visitor(p policy.Peer, identity string) visitor {
	v := visitor{peer: p}
	if c := d.config.Policy.FindClient(p, identity); c != nil {
		v.client = c.Name
	}
	return v
}

// visitorFor picks the client who may send as an identity: this host, where it may, since everybody
// may speak as himself; else the first of sendas.yaml. ok is false where nobody may.
func (d *Walk) visitorFor(identity string) (v visitor, ok bool) {
	if d.Client != "" {
		v, err := d.named(d.Client, identity)
		return v, err == nil
	}
	peers := []policy.Peer{thisHost}
	for i := range d.config.Clients {
		if p, ok := peerOf(&d.config.Clients[i]); ok {
			peers = append(peers, p)
		}
	}
	for _, p := range peers {
		if decision := d.decide(p, identity, identity); decision.Action == policy.Accept && decision.Identity.String() == addressOf(identity) {
			return d.visitor(p, identity), true
		}
	}
	return visitor{}, false
}

// addressOf writes an address as the policy does.
func addressOf(s string) string {
	a, err := address.Parse(s)
	if err != nil {
		return s
	}
	return a.String()
}

// decide says what the configuration wants to become of a message.
func (d *Walk) decide(p policy.Peer, identity, to string) policy.Decision {
	r := &policy.Request{Peer: p, Sender: identity, QueueID: "QUEUEID", Now: d.now()}
	r.AddField("From", " "+identity)
	r.AddRecipient(to, policy.Place{})
	return d.config.Policy.Decide(r)
}

// An inTalk is one session with Postfix's smtpd.
type inTalk struct {
	d    *Walk
	port postfix.Port
	v    visitor
	conn net.Conn
	text *textproto.Conn
	stop func() bool

	extensions map[string][]string
}

// advice fills in what the advices about the way in name.
func (k *inTalk) advice(key, identity string) finding.Advice {
	p := k.d.postfix
	const trusted = "smtpd_authorized_xclient_hosts"
	hosts, unset := "127.0.0.1", "-X "+trusted
	if own := p.Main[trusted]; own != "" {
		hosts, unset = own+" "+hosts, "-e '"+trusted+" = "+own+"'"
	}
	networks := cmp.Or(p.Main["mynetworks"], "127.0.0.0/8")
	return entranceAdvice[key].With("postfix", p.Command("postfix"), "postconf", p.Command("postconf"), "client", k.v.String(), "addr", k.v.peer.Addr.String(),
		"identity", identity, "queue", p.Main["queue_directory"], "log", k.d.logCommand(""), "set", trusted+" = "+hosts, "unset", unset,
		"mynetworks", p.Cure("mynetworks", networks+" "+k.v.peer.Addr.String()))
}

// trouble explains by entranceAdvice.
func (k *inTalk) trouble(key, found, identity string) error {
	return &smtpFault{found: found, advice: k.advice(key, identity), key: key}
}

// logCommand is what shows Postfix's log, of one message where there is a queue id.
func (d *Walk) logCommand(id string) string {
	file := ""
	if d.postfix != nil {
		file = d.postfix.Main["maillog_file"]
	}
	switch {
	case file != "" && id != "":
		return "grep " + id + " " + file
	case file != "":
		return "tail " + file
	case id != "":
		return "journalctl -g " + id
	}
	return "journalctl -u 'postfix*'"
}

// enter connects to Postfix as a visitor, up to the last EHLO. The error is a *smtpFault.
func (d *Walk) enter(ctx context.Context, port postfix.Port, v visitor) (*inTalk, error) {
	k := &inTalk{d: d, port: port, v: v}
	var from netip.Addr
	if d.isOwn(v.peer.Addr) && v.peer.Login == "" {
		from = v.peer.Addr
	}
	c, err := d.dialFrom(ctx, from, port.Addr)
	if err != nil {
		return nil, k.trouble("closed", rootCause(err), "")
	}
	if port.Wrapped {
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true}) // it is this host, and what is said is no secret
	}
	k.use(c)
	k.stop = context.AfterFunc(ctx, func() { c.Close() })
	if err := k.begin(!from.IsValid() && v.peer != thisHost); err != nil {
		k.end()
		return nil, err
	}
	return k, nil
}

func (k *inTalk) use(c net.Conn) {
	k.conn = c
	k.text = dialogue(c)
}

func (k *inTalk) end() {
	k.stop()
	k.conn.Close()
}

// begin greets, begins TLS where it must, and says by XCLIENT who is speaking (XCLIENT_README).
func (k *inTalk) begin(play bool) error {
	if r, err := k.say(replyTime, ""); err != nil || r.code != 220 {
		return k.fault(r, err, "")
	}
	if err := k.hello(); err != nil {
		return err
	}
	if _, offered := k.extensions["STARTTLS"]; offered && k.port.Secured {
		if r, err := k.say(replyTime, "STARTTLS"); err != nil || r.code != 220 {
			return k.fault(r, err, "")
		}
		k.use(tls.Client(k.conn, &tls.Config{InsecureSkipVerify: true})) // as above: it is this host
		if err := k.hello(); err != nil {
			return err
		}
	}
	if !play {
		return nil
	}
	attributes, offered := k.extensions["XCLIENT"]
	line := "XCLIENT ADDR=" + k.v.peer.Addr.String() + " NAME=[UNAVAILABLE]"
	if k.v.peer.Addr.Is6() {
		line = strings.Replace(line, "ADDR=", "ADDR=IPV6:", 1)
	}
	if k.v.peer.Login != "" {
		offered = offered && slices.Contains(attributes, "LOGIN")
		line += " LOGIN=" + k.v.peer.Login
	}
	if !offered {
		return k.trouble(noXclient, "XCLIENT is not offered to this host", "")
	}
	if r, err := k.say(replyTime, line); err != nil || r.code != 220 {
		return k.fault(r, err, "")
	}
	return k.hello()
}

// hello says EHLO and notes what is offered.
func (k *inTalk) hello() error {
	r, err := k.say(replyTime, "EHLO "+k.d.heloName())
	if err != nil || r.code != 250 {
		return k.fault(r, err, "")
	}
	k.extensions = make(map[string][]string)
	for _, line := range strings.Split(r.text, "\n")[1:] {
		if f := strings.Fields(strings.ToUpper(line)); len(f) > 0 {
			k.extensions[f[0]] = f[1:]
		}
	}
	return nil
}

// say sends a line and reads the reply; without a line it only reads.
func (k *inTalk) say(wait time.Duration, line string) (smtpReply, error) {
	k.conn.SetDeadline(time.Now().Add(wait))
	if line != "" {
		if err := k.text.PrintfLine("%s", line); err != nil {
			return smtpReply{}, err
		}
	}
	code, msg, err := k.text.ReadResponse(0)
	return smtpReply{code, fmt.Sprintf("%d %s", code, msg)}, err
}

// entranceFaults tell what Postfix's refusals mean; the first that matches counts (smtpd(8)).
var entranceFaults = []struct {
	form *regexp.Regexp
	key  string
}{
	{regexp.MustCompile(`^4\d\d 4\.7\.1 (<.*>: )?(.*: )?Service unavailable|^451 4\.7\.1|^451 4\.3\.5 .*policy`), "no-milter"},
	{regexp.MustCompile(`(?i)relay access denied|relaying denied`), "relay"},
	{regexp.MustCompile(`is not a known client of this relay|may not send as|sendas`), "ours"},
	{regexp.MustCompile(`^45[12] 4\.3\.[0-5]`), "config"},
	{regexp.MustCompile(`^530|^538|Must issue a STARTTLS`), "login"},
	{regexp.MustCompile(``), "strict"},
}

// fault explains what Postfix answered, or that it did not.
func (k *inTalk) fault(r smtpReply, err error, identity string) error {
	var protocol textproto.ProtocolError
	switch {
	case errors.As(err, &protocol):
		return k.trouble("not-smtp", "the answer is no reply of SMTP", identity)
	case err != nil:
		return k.trouble("closed", rootCause(err), identity)
	case r.code == 452:
		return k.trouble("full", r.text, identity)
	}
	for _, f := range entranceFaults {
		if f.form.MatchString(r.text) || f.key == "relay" && strings.Contains(r.text, "ccess denied") && !k.relayed() {
			return k.trouble(f.key, r.text, identity)
		}
	}
	return k.trouble("strict", r.text, identity)
}

// relayed reports whether mynetworks has the visitor, as far as it is a list of networks.
func (k *inTalk) relayed() bool {
	return slices.ContainsFunc(k.d.postfix.Items("mynetworks"), func(item string) bool {
		net, err := netip.ParsePrefix(strings.NewReplacer("[", "", "]", "").Replace(item))
		return err != nil || net.Contains(k.v.peer.Addr)
	})
}

// propose begins a message, and takes it back.
func (k *inTalk) propose(from, to string) error {
	for _, line := range []string{"MAIL FROM:<" + wireAddress(from) + ">", "RCPT TO:<" + wireAddress(to) + ">"} {
		if r, err := k.say(replyTime, line); err != nil || r.code != 250 {
			k.say(replyTime, "RSET")
			return k.fault(r, err, from)
		}
	}
	if r, err := k.say(replyTime, "RSET"); err != nil || r.code != 250 {
		return k.fault(r, err, from)
	}
	return nil
}

// isOwn reports whether an address is one of this host's, but for loopback.
func (d *Walk) isOwn(addr netip.Addr) bool {
	list, err := d.interfaces()
	return err == nil && !addr.IsLoopback() && slices.ContainsFunc(list, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr().Unmap() == addr
	})
}

// awaitsVisitors reports whether a client comes over the network; those of a null client do not.
func (d *Walk) awaitsVisitors() bool {
	elsewhere := func(n string) bool { return !strings.HasPrefix(n, "127.") && !strings.HasPrefix(n, "::1") }
	return slices.ContainsFunc(d.config.Clients, func(c config.Client) bool {
		return len(c.Networks) == 0 || slices.ContainsFunc(c.Networks, elsewhere)
	})
}

// checkEntrance goes the way into Postfix as a client, with each identity, up to RCPT: who may, who
// is refused, and by whom. Nothing is handed in.
func (d *Walk) checkEntrance(ctx context.Context, patients []patient) {
	if d.config == nil || d.postfix == nil || d.down {
		return // said already
	}
	const id, what = "port", "port"
	s := d.Section("in", "way in")
	ports := d.postfix.Ports()
	if len(ports) == 0 && !d.awaitsVisitors() {
		s.Skip(id, what, "there is none, and no client in sendas.yaml but this host")
		return
	}
	if len(ports) == 0 {
		s.Fail(id, what, "there is none", (&inTalk{d: d}).advice("no-port", ""))
		return
	}
	talks, faults := make(map[visitor]*inTalk), make(map[visitor]error)
	taken, all, told := 0, 0, make(map[string]bool)
	for i, identity := range identitiesOf(patients) {
		v, ok := d.visitorFor(identity)
		if all++; !ok {
			s.Skip(fmt.Sprintf("as.%d", i+1), "MAIL FROM:<"+identity+">", "no client can be played that may ask for it")
			continue
		}
		if talks[v] == nil && faults[v] == nil {
			if talks[v], faults[v] = d.enter(ctx, ports[0], v); faults[v] == nil {
				defer talks[v].end()
			}
		}
		err := faults[v]
		if err == nil {
			err = talks[v].propose(identity, identity)
		}
		f, bad := errors.AsType[*smtpFault](err)
		switch {
		case !bad:
			taken++
		case f.key == noXclient:
			s.Skip(fmt.Sprintf("as.%d", i+1), "MAIL FROM:<"+identity+">", "only %s may ask for it, and this host may not speak for others (XCLIENT)", &v)
		case f.key == "no-milter" && d.failed("sockets.milter", "sockets.policy", "eyes.socket.milter", "eyes.socket.policy", "eyes.peers", "postfix.chroot.", "postfix.folder"):
			s.Skip(fmt.Sprintf("as.%d", i+1), ports[0].Addr, "%s, which comes of what is said above", f.found)
		case strings.HasPrefix(f.found, "550 5.1.1") && d.failed("postfix.here."), strings.HasPrefix(f.found, "451 4.3.0") && d.failed("postfix.table."):
			s.Skip(fmt.Sprintf("as.%d", i+1), ports[0].Addr, "%s, which comes of what is said above", f.found)
		case !told[strings.ReplaceAll(f.found, identity, "")]: // one cause, one finding
			told[strings.ReplaceAll(f.found, identity, "")] = true
			s.Trouble(f.passes, fmt.Sprintf("as.%d", i+1), fmt.Sprintf("%s, MAIL FROM:<%s> as %s", ports[0].Addr, identity, &v), f.found, f.advice)
		}
	}
	if taken > 0 {
		s.Ok(id, what+" "+ports[0].Addr, "%d of %d identities are taken up to RCPT", taken, all)
	}
}

// identitiesOf are the senders of mailboxes, each once, as many as are tried of one mailbox.
func identitiesOf(patients []patient) []string {
	var list []string
	for _, p := range patients {
		for _, s := range p.identities {
			if !slices.Contains(list, s) && len(list) < maxIdentities {
				list = append(list, s)
			}
		}
	}
	return list
}
