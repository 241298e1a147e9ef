package entra

import (
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"
)

// DeviceFlow is how the device code flow goes (RFC 8628).
type DeviceFlow struct {
	Life     time.Duration `yaml:"life"`      // of a code; 15m
	Interval time.Duration `yaml:"interval"`  // between polls; 5s. The answer says it in whole seconds, and at least 1
	SlowDown bool          `yaml:"slow_down"` // answer a poll before the interval is over with slow_down
	// ApproveAs is a user who approves every code by himself, after so many
	// polls that found it pending; "" waits for Approve.
	ApproveAs    string `yaml:"approve_as"`
	ApproveAfter int    `yaml:"approve_after"`
}

// DeviceCode is a device code that was given out.
type DeviceCode struct {
	UserCode string    `json:"user_code"` // what the user types
	ClientID string    `json:"client_id"`
	Scope    string    `json:"scope"`
	State    string    `json:"state"` // pending, approved, declined, redeemed, expired
	User     string    `json:"user"`  // who approved it
	Polls    int       `json:"polls"`
	Expires  time.Time `json:"expires"`
}

// The states of a device code.
const (
	devicePending  = "pending"
	deviceApproved = "approved"
	deviceDeclined = "declined"
	deviceRedeemed = "redeemed"
	deviceExpired  = "expired"
)

// deviceCode is a device code with what only the simulator knows.
type deviceCode struct {
	DeviceCode
	query   tokenQuery // of the first request, for who it was and what the sign-in page says
	scopes  scopes
	session *session // once approved
	polled  time.Time
	serial  int
}

// stateAt tells the state, which time alone can change.
func (d *deviceCode) stateAt(now time.Time) string {
	if d.State != deviceRedeemed && !now.Before(d.Expires) {
		return deviceExpired
	}
	return d.State
}

const verificationURI = "https://microsoft.com/devicelogin"

// serveDeviceCode is the first step: it gives a code.
func (l *Login) serveDeviceCode(w http.ResponseWriter, r *http.Request) {
	q, refused := l.readForm(w, r)
	q.grant = GrantDeviceStart
	if refused == nil {
		refused = l.checkUserTenant(q)
	}
	if refused == nil {
		refused = l.refused(q.grant, q)
	}
	var answer map[string]any
	if refused == nil {
		answer, refused = l.startDevice(q)
	}
	l.serveJSON(w, q, answer, refused)
}

func (l *Login) startDevice(q *tokenQuery) (map[string]any, *refusal) {
	if _, refused := l.app(q); refused != nil {
		return nil, refused
	}
	text := q.form.Get("scope")
	if text == "" {
		return nil, l.refuseFor(q, 900144)
	}
	sc, refused := l.parseScopes(q, text, 70011)
	if refused != nil {
		return nil, refused
	}
	flow := l.cfg.DeviceFlow
	code, d := opaque("0.", 160), &deviceCode{query: *q, scopes: sc, DeviceCode: DeviceCode{
		UserCode: newUserCode(), ClientID: q.clientID, Scope: text, State: devicePending, Expires: time.Now().Add(flow.Life)}}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deviceSerial++
	d.serial = l.deviceSerial
	l.forgetOld()
	l.devices[code] = d
	return map[string]any{
		"user_code": d.UserCode, "device_code": code, "verification_uri": verificationURI,
		"expires_in": seconds(flow.Life), "interval": seconds(flow.Interval),
		"message": fmt.Sprintf("To sign in, use a web browser to open the page %s and enter the code %s to authenticate.", verificationURI, d.UserCode),
	}, nil
}

// seconds rounds up to a second, since the answer has whole ones, and 0 would
// mean something else.
func seconds(d time.Duration) int { return max(int(math.Ceil(d.Seconds())), 1) }

// redeemDeviceCode is a poll.
func (l *Login) redeemDeviceCode(q *tokenQuery) (map[string]any, *refusal) {
	app, refused := l.app(q)
	if refused != nil {
		return nil, refused
	}
	proof, refused := l.proveForUser(app, q)
	if refused != nil {
		return nil, refused
	}
	n, refused := l.poll(q)
	if refused != nil {
		return nil, refused
	}
	if refused := l.checkSession(q, n); refused != nil {
		return nil, refused
	}
	return l.userAnswer(q, app, n, n.scopes, proof), nil
}

// poll returns the session if the user has approved, and what to say if not.
func (l *Login) poll(q *tokenQuery) (*session, *refusal) {
	d, state, soon := l.countPoll(q)
	if d == nil {
		return nil, l.refuseFor(q, 70018)
	}
	switch {
	case state == deviceExpired:
		return nil, l.refuseFor(q, 70019)
	case state == deviceRedeemed:
		return nil, l.refuseFor(q, 54005)
	case state == deviceDeclined:
		return nil, l.refuseUncoded(q, "authorization_declined")
	case soon:
		return nil, l.refuseUncoded(q, "slow_down")
	case state == devicePending:
		return nil, l.refuseFor(q, 70016)
	}
	l.mu.Lock()
	n, first := d.session, d.State == deviceApproved
	d.State = deviceRedeemed
	l.mu.Unlock()
	if !first { // another poll was faster
		return nil, l.refuseFor(q, 54005)
	}
	return n, nil
}

// countPoll finds the code of a poll, nil if it is none of this app's, and lets
// the user who approves by himself do so. soon is a poll that should have waited.
func (l *Login) countPoll(q *tokenQuery) (d *deviceCode, state string, soon bool) {
	now, flow := time.Now(), l.cfg.DeviceFlow
	l.mu.Lock()
	d = l.devices[q.form.Get("device_code")]
	if d == nil || d.ClientID != q.clientID {
		l.mu.Unlock()
		return nil, "", false
	}
	soon = flow.SlowDown && now.Sub(d.polled) < flow.Interval
	d.polled = now
	d.Polls++
	state = d.stateAt(now)
	approves := state == devicePending && !soon && flow.ApproveAs != "" && d.Polls > flow.ApproveAfter
	userCode := d.UserCode
	l.mu.Unlock()
	// A user whom the sign-in page turns away leaves the code pending.
	if approves && l.Approve(userCode, flow.ApproveAs) == nil {
		state = deviceApproved
	}
	return d, state, soon
}

// Approve lets a user type a code into the sign-in page and consent. It fails
// where the page would say no: a code that is wrong, expired, or used before, or
// a user whom Entra refuses. Spaces, hyphens and case do not matter in the code.
func (l *Login) Approve(userCode, user string) error {
	d, err := l.undecided(userCode)
	if err != nil {
		return err
	}
	n, refused := l.signIn(&d.query, user, d.scopes)
	if refused != nil {
		return fmt.Errorf("exosim: signing in %q: %s: %s", user, refused.name(), refused.text)
	}
	return l.decide(d, deviceApproved, n)
}

// Decline lets a user answer the sign-in page with no. It fails for a code that
// is wrong, expired, or used before.
func (l *Login) Decline(userCode string) error {
	d, err := l.undecided(userCode)
	if err != nil {
		return err
	}
	return l.decide(d, deviceDeclined, nil)
}

// undecided finds a code that waits for its user.
func (l *Login) undecided(userCode string) (*deviceCode, error) {
	plain := strings.ToUpper(strings.NewReplacer(" ", "", "-", "").Replace(userCode))
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.devices {
		if d.UserCode != plain {
			continue
		}
		if state := d.stateAt(time.Now()); state != devicePending {
			return nil, fmt.Errorf("exosim: the user code %q is %s", userCode, state)
		}
		return d, nil
	}
	return nil, fmt.Errorf("exosim: no user code %q", userCode)
}

func (l *Login) decide(d *deviceCode, state string, n *session) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if d.State != devicePending { // somebody else was faster
		return fmt.Errorf("exosim: the user code %q is %s", d.UserCode, d.State)
	}
	d.State, d.session = state, n
	if n != nil {
		d.User = n.user
	}
	return nil
}

// DeviceCodes returns the device codes of the last hours, in the order in which
// they were given out.
func (l *Login) DeviceCodes() []DeviceCode {
	l.mu.Lock()
	defer l.mu.Unlock()
	sorted := slices.SortedFunc(maps.Values(l.devices), func(a, b *deviceCode) int { return a.serial - b.serial })
	list := []DeviceCode{}
	for _, d := range sorted {
		c := d.DeviceCode
		c.State = d.stateAt(time.Now())
		list = append(list, c)
	}
	return list
}
