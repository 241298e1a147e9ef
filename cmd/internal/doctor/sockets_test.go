package doctor

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/finding/findingtest"
	"github.com/sendas/sendas/cmd/internal/postfix"
	"github.com/sendas/sendas/internal/serve"
	"github.com/sendas/sendas/milter"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/token/lease"
)

// socketDoctor is a doctor whose services have their sockets below a folder.
func socketDoctor(t *testing.T) (d *Walk, dir string) {
	t.Helper()
	dir = t.TempDir()
	w := emptyWorld()
	w.dial = (&net.Dialer{}).DialContext
	d = New(&Options{Stdout: &bytes.Buffer{}}, w)
	c, err := config.Load(configtest.WriteFile(t, filepath.Join(dir, "sendas.yaml"), configtest.SmallConfig, 0o644), config.SkipFiles)
	if err != nil {
		t.Fatal(err)
	}
	c.Milter.Listen, c.Milter.PolicyListen, c.Token.Listen = serve.Unix(dir+"/milter"), serve.Unix(dir+"/policy"), serve.Unix(dir+"/credentials")
	c.Milter.HTTP, c.Token.HTTP = "", ""
	d.config = c
	return d, dir
}

func listenOn(t *testing.T, path string) net.Listener {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// The real services are recognised.
func TestDoctorSockets(t *testing.T) {
	d, dir := socketDoctor(t)
	log, metrics, sessions := slog.New(slog.DiscardHandler), milter.NewMetrics(prometheus.NewRegistry()), new(milter.Sessions)
	srv := &milter.Server{Log: log, Metrics: metrics, Sessions: sessions}
	srv.Use(d.config.Policy)
	early := &milter.PolicyServer{Log: log, Metrics: metrics, Sessions: sessions}
	early.Use(d.config.Policy)
	go srv.Serve(listenOn(t, dir+"/milter"))
	go early.Serve(listenOn(t, dir+"/policy"))
	questions := make(chan string, 10)
	maps := map[string]lease.Map{"transport": func(_ context.Context, _ lease.Caller, key string) lease.Result {
		questions <- key
		return lease.Result{Status: lease.NotFound}
	}}
	go (&lease.SocketmapServer{Maps: maps, Peers: []uint32{uint32(os.Geteuid()) + 1}, Log: log}).Serve(t.Context(), listenOn(t, dir+"/credentials"))
	d.checkSockets(t.Context())
	findingtest.WantWhole(t, &d.Report)
	d.wantCheck(t, "sockets.milter", finding.OK, "the milter of sendas")
	d.wantCheck(t, "sockets.policy", finding.OK, "DUNNO")
	d.wantCheck(t, "sockets.credentials", finding.OK, "token.peers")
	d.wantCheck(t, "sockets.http.milter", finding.Skip, "milter.http")
	d.wantCheck(t, "sockets.http.token", finding.Skip, "token.http")

	// A user who may ask asks for nothing but the way of the null sender.
	d, dir = socketDoctor(t)
	d.config.Milter.PolicyListen = ""
	go (&lease.SocketmapServer{Maps: maps, Peers: []uint32{uint32(os.Geteuid())}, Log: log}).Serve(t.Context(), listenOn(t, dir+"/credentials"))
	d.checkSockets(t.Context())
	findingtest.WantWhole(t, &d.Report)
	want := finding.OK
	if os.Geteuid() == 0 {
		want = finding.Warn
	}
	d.wantCheck(t, "sockets.credentials", want, "answers")
	d.wantCheck(t, "sockets.policy", finding.Skip)
	d.wantCheck(t, "sockets.milter", finding.Fail, "no such file", "systemctl start sendas-milter")
	if q := <-questions; q != "<>" || len(questions) > 0 {
		t.Errorf("the doctor asked for %q, and %d more", q, len(questions))
	}
}

// milterAnswer is a packet of the milter protocol, of a milter that does without HELO.
func milterAnswer(command byte, actions uint32) []byte {
	b := append([]byte{0, 0, 0, 13, command, 0, 0, 0, 6}, binary.BigEndian.AppendUint32(nil, actions)...)
	return append(b, 0, 0, 0, 2)
}

// What else may answer on a socket.
func TestDoctorProbes(t *testing.T) {
	d, _ := socketDoctor(t)
	probeMilter := d.probeMilter
	for _, tc := range []struct {
		name   string
		probe  func(net.Conn) (probeResult, error)
		answer []byte
		want   string // in the error, "" for none
	}{
		{"our milter", probeMilter, milterAnswer('O', 0x171), ""},
		{"our milter without macros", probeMilter, milterAnswer('O', 0x071), ""},
		{"OpenDKIM", probeMilter, milterAnswer('O', 0x11), "another milter"},
		{"not O", probeMilter, milterAnswer('c', 0x171), "another milter"},
		{"SMTP", probeMilter, []byte("220 mx ESMTP ready\r\n"), "no milter"},
		{"huge", probeMilter, []byte{0xff, 0xff, 0xff, 0xff, 'O'}, "no milter"},
		{"short milter", probeMilter, []byte{0, 0, 0, 13, 'O', 0}, "closed without an answer"},
		{"silent milter", probeMilter, nil, "closed without an answer"},
		{"policy", probePolicy, []byte("action=DUNNO\n\n"), ""},
		{"not policy", probePolicy, []byte("220 mx ESMTP ready\r\n"), "no policy service"},
		{"silent policy", probePolicy, nil, "closed without an answer"},
		{"endless policy", probePolicy, bytes.Repeat([]byte("x"), 10000), "closed without an answer"},
		{"credentials", probeCredentials, []byte("9:NOTFOUND ,"), ""},
		{"credentials, sent away", probeCredentials, nil, ""},
		{"not credentials", probeCredentials, []byte("220 mx, ESMTP\r\n"), "not the token service"},
		{"half an answer", probeCredentials, []byte("9:NOT"), "closed without an answer"},
	} {
		near, far := net.Pipe()
		go func() {
			defer far.Close()
			far.SetDeadline(time.Now().Add(time.Minute))
			buf := make([]byte, 4096)
			far.Read(buf)
			far.Write(tc.answer)
			if tc.want == "" && len(tc.answer) > 0 {
				io.Copy(io.Discard, far)
			}
		}()
		r, err := tc.probe(near)
		near.Close()
		switch {
		case tc.want == "" && (err != nil || r.found == ""):
			t.Errorf("%s: %+v, %v", tc.name, r, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: %+v, %v, want %q", tc.name, r, err, tc.want)
		}
	}
}

// TestDoctorMode: a milter that runs in another mode than the configuration has is found by what it
// asks Postfix for, and one that only observes is all that is looked for where that is wanted.
func TestDoctorMode(t *testing.T) {
	for _, tc := range []struct {
		config, milter policy.Mode
		want           finding.Status
		words          []string
	}{
		{policy.Enforce, policy.Enforce, finding.OK, []string{"the milter of sendas answers"}},
		{policy.Observe, policy.Observe, finding.OK, []string{"and only observes"}},
		{policy.Enforce, policy.Observe, finding.Fail, []string{"in another mode", "changes nothing", "systemctl reload sendas-milter"}},
		{policy.Observe, policy.Enforce, finding.Fail, []string{"in another mode", "changes and refuses mail", "systemctl reload sendas-milter"}},
	} {
		d, dir := socketDoctor(t)
		d.config.Milter.Mode = string(tc.config)
		rules, errs := policy.New(policy.Settings{Mode: policy.Observe})
		if tc.milter == policy.Enforce {
			rules, errs = d.config.Policy, nil
		}
		if errs != nil {
			t.Fatal(errs)
		}
		log := slog.New(slog.DiscardHandler)
		m := &milter.Server{Log: log, Metrics: milter.NewMetrics(prometheus.NewRegistry()), Sessions: new(milter.Sessions)}
		m.Use(rules)
		go m.Serve(listenOn(t, dir+"/milter"))
		d.checkSockets(t.Context())
		findingtest.WantWhole(t, &d.Report)
		d.wantCheck(t, "sockets.milter", tc.want, tc.words...)
		if tc.config == policy.Observe {
			d.wantCheck(t, "sockets.token", finding.Skip, "only observes")
		}
		if tc.config == policy.Observe { // what enable looks at: another mode is in the way, one that is away is not
			r := &finding.Report{}
			CheckOthers(t.Context(), d.world, r, &postfix.Setup{Config: d.config}, true)
			if len(r.Checks) != 1 || r.Checks[0].Status != tc.want {
				t.Errorf("enable finds %+v, want %s", r.Checks, tc.want)
			}
			d.config.Milter.Listen = serve.Unix(dir + "/nobody")
			r = &finding.Report{}
			CheckOthers(t.Context(), d.world, r, &postfix.Setup{Config: d.config}, false)
			if len(r.Checks) != 1 || r.Checks[0].Status != finding.Warn {
				t.Errorf("without a milter enable finds %+v", r.Checks)
			}
		}
	}
}

func TestDoctorSilentSocket(t *testing.T) {
	d, _ := socketDoctor(t)
	d.world.dial = func(context.Context, string, string) (net.Conn, error) {
		c, far := net.Pipe()
		go io.Copy(io.Discard, far)
		return silentConn{c}, nil
	}
	d.probe(t.Context(), d.Section("sockets", "socket"), "milter", "milter.listen", "milter", "unix:/x", d.probeMilter)
	d.wantCheck(t, "sockets.milter", finding.Fail, "no answer", "systemctl restart sendas-milter")
}

func TestDoctorHealth(t *testing.T) {
	for _, tc := range []struct {
		health, ready int
		body          string
		id            string
		status        finding.Status
		words         string
	}{
		{200, 200, "ready", "readyz", finding.OK, "ready"},
		{200, 503, `credential "relay-app" has no token yet`, "readyz", finding.Fail, "has no token yet"},
		{404, 200, "ready", "healthz", finding.Fail, "HTTP 404"},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(map[string]int{"/healthz": tc.health, "/readyz": tc.ready}[r.URL.Path])
			fmt.Fprintln(w, tc.body)
		}))
		d, _ := socketDoctor(t)
		d.checkHealth(t.Context(), d.Section("sockets", "socket"), "token", strings.TrimPrefix(srv.URL, "http://"))
		findingtest.WantWhole(t, &d.Report)
		d.wantCheck(t, "sockets.http.token."+tc.id, tc.status, tc.words)
		srv.Close()
	}
}

// TestDoctorHealthOfOneMailbox: a mailbox whose credential has a token is not failed by another one.
func TestDoctorHealthOfOneMailbox(t *testing.T) {
	for _, tc := range []struct {
		name   string
		live   string // the credential that has a token
		status finding.Status
	}{
		{"its own lives", "relay-app", finding.Warn},
		{"another one lives", "spare", finding.Fail},
		{"none lives", "", finding.Fail},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/readyz":
				http.Error(w, "a credential has no token yet", http.StatusServiceUnavailable)
			case "/status":
				fmt.Fprintf(w, `{"credentials": [{"name": "relay-app", "token": {"live": %v}}, {"name": "spare", "token": {"live": %v}}]}`, tc.live == "relay-app", tc.live == "spare")
			}
		}))
		d, _ := tokenDoctor(t, secretCredential, nil)
		d.world.dial = (&net.Dialer{}).DialContext
		d.Mailbox = "scan@contoso.com"
		d.checkHealth(t.Context(), d.Section("sockets", "socket"), "token", strings.TrimPrefix(srv.URL, "http://"))
		t.Log(tc.name)
		d.wantCheck(t, "sockets.http.token.readyz", tc.status, "has no token")
		srv.Close()
	}
}

// TestDoctorOfOneMailbox: what is wrong with the file of a credential that the mailbox does not use
// is told, and is no failure.
func TestDoctorOfOneMailbox(t *testing.T) {
	dir := t.TempDir()
	configtest.WriteFile(t, filepath.Join(dir, "relay-app.secret"), "s3cr3t~in/the+lab\n", 0o600)
	yaml := strings.Replace(configtest.SmallConfig, "credentials:\n", "credentials:\n  spare.app:\n    client_id: 5f2c0d3e-0000-4000-8000-000000000002\n    client_secret_file: missing.secret\n", 1)
	yaml = strings.Replace(yaml, "mailboxes:\n", "mailboxes:\n  - {address: spare@contoso.com, credential: spare.app}\n", 1)
	file := configtest.WriteFile(t, filepath.Join(dir, "sendas.yaml"), yaml, 0o644)
	for _, tc := range []struct {
		mailbox string
		status  finding.Status
	}{{"scan@contoso.com", finding.Warn}, {"spare@contoso.com", finding.Skip}, {"", finding.Skip}} {
		d := New(&Options{File: file, Mailbox: tc.mailbox, Stdout: io.Discard}, emptyWorld())
		d.checkConfig()
		t.Log(tc.mailbox)
		d.wantCheck(t, "config.problem.1", tc.status)
		if tc.status == finding.Warn {
			d.wantCheck(t, "config.problem.1", tc.status, "missing.secret")
			continue
		}
		list, err := d.patients()
		if err != nil {
			t.Fatal(err)
		}
		list = slices.DeleteFunc(list, func(p patient) bool { return p.credential != "spare.app" })
		d.checkCredentials(t.Context(), list)
		d.wantCheck(t, "credential.spare.app.secret", finding.Fail, "missing.secret", "does not exist")
		told := 0
		for _, c := range d.Checks {
			if strings.Contains(c.Found+c.What, "missing.secret") && c.Status != finding.Skip {
				told++
			}
		}
		if told != 1 {
			t.Errorf("the missing file is told %d times", told)
		}
	}
}

func TestRootCause(t *testing.T) {
	_, err := net.Dial("unix", filepath.Join(t.TempDir(), "none"))
	if got := rootCause(err); got != "no such file or directory" {
		t.Errorf("rootCause(%v) = %q", err, got)
	}
	if got := rootCause(errors.New("x")); got != "x" {
		t.Errorf("rootCause = %q", got)
	}
}

// What "sendas postfix enable" says of the services: a milter that is being started is waited for,
// one that is not there is in the way of a Postfix that runs, and said where none does.
func TestDoctorListeners(t *testing.T) {
	absent := func(context.Context, string, string) (net.Conn, error) { return nil, syscall.ENOENT }
	for _, tc := range []struct {
		running bool
		want    finding.Status
		waited  time.Duration
	}{{true, finding.Fail, startTime}, {false, finding.Warn, 0}} {
		synctest.Test(t, func(t *testing.T) {
			d, _ := socketDoctor(t)
			d.world.dial = absent
			begun := time.Now()
			d.checkListeners(t.Context(), tc.running)
			if waited := time.Since(begun); waited != tc.waited {
				t.Errorf("running=%v: it waited %v, want %v", tc.running, waited, tc.waited)
			}
			findingtest.WantWhole(t, &d.Report)
			d.wantCheck(t, "sockets.milter", tc.want, "systemctl start sendas-milter")
			d.wantCheck(t, "sockets.credentials", finding.Warn, "systemctl start sendas-token")
		})
	}
	d, dir := socketDoctor(t)
	srv := &milter.Server{Log: slog.New(slog.DiscardHandler), Metrics: milter.NewMetrics(prometheus.NewRegistry()), Sessions: new(milter.Sessions)}
	srv.Use(d.config.Policy)
	asked := 0
	d.world.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if asked++; asked == 3 { // it has started
			go srv.Serve(listenOn(t, dir+"/milter"))
		}
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	d.checkListeners(t.Context(), true)
	d.wantCheck(t, "sockets.milter", finding.OK, "the milter of sendas")
}
