package renew

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/big"
	mathrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
	simulated "github.com/sendas/sendas/contrib/exosim/entra"
	"github.com/sendas/sendas/internal/logtest"
	"github.com/sendas/sendas/token/entra"
)

const (
	client    = "5f2c0d3e-0000-4000-8000-000000000001"
	object    = "0b1ec700-0000-4000-8000-00000000000a" // of the app registration
	service   = "0b1ec700-0000-4000-8000-000000000001" // of the enterprise application
	scope     = "https://outlook.office365.com/.default"
	authority = "https://login.example"
	day       = 24 * time.Hour
)

// keys are some that were made once: making one takes long.
var keys = sync.OnceValue(func() (list []*rsa.PrivateKey) {
	for range 12 {
		k, err := rsa.GenerateKey(rand.Reader, 1024) // as short as Go takes: it is read often
		if err != nil {
			panic(err)
		}
		list = append(list, k)
	}
	return list
})

// site is an Entra that is asked without a network, so that time can pass at once.
type site struct {
	t      *testing.T
	login  *simulated.Login
	folder string
	log    *logtest.Buffer
	used   atomic.Int64 // keys

	closed bool // Graph takes no connection

	// before is asked before each request, after is told after it; nil lets all pass.
	before func(*http.Request) error
	after  func(*http.Request) error
}

func (s *site) RoundTrip(r *http.Request) (resp *http.Response, err error) {
	if s.closed && r.URL.Host == "graph.microsoft.com" {
		return nil, syscall.ECONNREFUSED
	}
	if s.before != nil {
		if err := s.before(r); err != nil {
			return nil, err
		}
	}
	defer func() {
		if recover() != nil {
			resp, err = nil, io.ErrUnexpectedEOF // as net/http ends a connection
		}
		if err == nil && s.after != nil {
			if err = s.after(r); err != nil {
				resp = nil
			}
		}
	}()
	in := r.Clone(r.Context())
	in.TLS, in.Host = new(tls.ConnectionState), r.URL.Host
	w := httptest.NewRecorder()
	s.login.Handler().ServeHTTP(w, in)
	return w.Result(), nil
}

// start makes a site whose app has a certificate of that life, which began to be valid just now.
func start(t *testing.T, life time.Duration, graph simulated.GraphConfig) *site {
	t.Helper()
	s := &site{t: t, folder: t.TempDir(), log: new(logtest.Buffer)}
	s.writePair("relay-app.pem", life)
	d := directory.Config{Tenant: "contoso.onmicrosoft.com", Apps: []directory.App{{
		ClientID: client, ObjectID: service, ApplicationObjectID: object, CertificateFile: s.file("relay-app.pem"), Model: directory.ModelRBAC,
	}}}
	if err := d.Complete(); err != nil {
		t.Fatal(err)
	}
	c := simulated.Config{TokenLife: time.Hour, Graph: graph}
	if err := c.Complete(d.HasUser); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.login, err = simulated.New(c, directory.New(d), mathrand.New(mathrand.NewPCG(1, 2))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.login.Stop)
	return s
}

func (s *site) file(name string) string { return filepath.Join(s.folder, name) }

func (s *site) key() (*rsa.PrivateKey, error) {
	return keys()[int(s.used.Add(1)-1)%len(keys())], nil
}

// writePair writes what an administrator makes.
func (s *site) writePair(name string, life time.Duration) *x509.Certificate {
	s.t.Helper()
	key, _ := s.key()
	serial := big.NewInt(s.used.Load())
	tmpl := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "relay"}, NotBefore: time.Now(), NotAfter: time.Now().Add(life)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		s.t.Fatal(err)
	}
	pkcs8, _ := x509.MarshalPKCS8PrivateKey(key)
	text := append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	if err := os.WriteFile(s.file(name), text, 0o600); err != nil {
		s.t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	return cert
}

// keeper is one of a host of that name, as a service that has just started has it.
func (s *site) keeper(host string) *Keeper {
	return &Keeper{
		Credential: "relay-app", ClientID: client, ObjectID: object, Configured: entra.KeyPair{CertificateFile: s.file("relay-app.pem")}, Before: 20 * day,
		TokenURL: authority + "/contoso.onmicrosoft.com/oauth2/v2.0/token", Scope: scope, Graph: "https://graph.microsoft.com", Audience: "00000002-0000-0000-c000-000000000000",
		Dir: s.file("state-" + host), Client: &http.Client{Transport: s}, Log: slog.New(slog.NewTextHandler(s.log, nil)), generate: s.key,
	}
}

// mustWork asks for a token as the service does.
func (s *site) mustWork(k *Keeper) {
	s.t.Helper()
	c := &entra.ClientCredentials{Credential: "relay-app", ClientID: client, Scope: scope, TokenURL: k.TokenURL, Client: &http.Client{Transport: s.login2()}, Pairs: k.Pairs}
	if _, err := c.Token(context.Background()); err != nil {
		s.t.Fatalf("at %v no token: %v\n%s", time.Now(), err, s.log)
	}
}

// login2 reaches Entra whatever becomes of the keeper's requests.
func (s *site) login2() http.RoundTripper { return &site{t: s.t, login: s.login} }

func run(t *testing.T, k *Keeper) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { k.Run(ctx) })
	return func() { cancel(); wg.Wait() }
}

// TestYear: there is a token on each day, each certificate is replaced in time, and those that the
// keeper added are gone from the app when they have had their time. Entra learns of a new one late.
func TestYear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, 60*day, simulated.GraphConfig{KnownAfter: 7 * time.Minute})
		k := s.keeper("a")
		defer run(t, k)()
		began := time.Now()
		for time.Since(began) < 365*day {
			time.Sleep(25 * time.Hour)
			s.mustWork(k)
			if n := len(s.login.Keys(client)); n > 3 {
				t.Fatalf("after %v the app has %d certificates", time.Since(began), n)
			}
			if st := k.State(); st.Err != nil || time.Until(st.Ends) < 19*day {
				t.Fatalf("after %v: %+v", time.Since(began), st)
			}
		}
		// 60 days each, replaced 20 days before the end.
		if n := strings.Count(s.log.String(), "the new certificate is in use"); n < 8 || n > 9 {
			t.Errorf("%d renewals in a year\n%s", n, s.log)
		}
		if n := len(s.login.Keys(client)); n != 2 {
			t.Errorf("the app has %d certificates: want the administrator's, which has ended, and ours", n)
		}
		list, _ := filepath.Glob(filepath.Join(k.dir(), "*.pem"))
		if len(list) != 1 {
			t.Errorf("keys on the disk: %q", list)
		}
		for path, want := range map[string]fs.FileMode{list[0]: 0o600, k.bookFile(): 0o600, k.dir(): 0o700} {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: mode %v, want %v", path, info.Mode(), want)
			}
		}
	})
}

// TestCrash: the process dies at each of its requests, before it is sent or when its answer is lost,
// and the next process begins. There is a token at any moment, and in the end one certificate of ours.
func TestCrash(t *testing.T) {
	died := errors.New("died")
	for _, lost := range []bool{false, true} {
		for at := range 5 {
			t.Run(fmt.Sprintf("request %d, answer lost %v", at, lost), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := start(t, 60*day, simulated.GraphConfig{KnownAfter: 2 * time.Minute})
					ctx, die := context.WithCancel(t.Context())
					n := 0
					fail := func(*http.Request) error {
						n++
						if n == at+1 {
							die()
							return died
						}
						return nil
					}
					if lost {
						s.after = fail
					} else {
						s.before = fail
					}
					time.Sleep(41 * day)
					k := s.keeper("a")
					k.Run(ctx) // until it dies
					s.before, s.after = nil, nil
					s.mustWork(k)

					k = s.keeper("a")
					defer run(t, k)()
					for range 20 {
						time.Sleep(2 * time.Hour)
						s.mustWork(k)
					}
					if st := k.State(); st.Made == "" || st.Pending || st.Err != nil || time.Until(st.Ends) < 55*day {
						t.Errorf("afterwards: %+v\n%s", st, s.log)
					}
					// Twice the same certificate, where Graph's answer was lost.
					thumbs := make(map[string]bool)
					for _, key := range s.login.Keys(client) {
						thumbs[thumbprint(key.Cert.Raw)] = true
					}
					if len(thumbs) != 2 {
						t.Errorf("the app has %d certificates, want the administrator's and ours", len(thumbs))
					}
				})
			})
		}
	}
}

// TestRefused: what Microsoft answers, what is said of it, and that the old certificate serves until
// the trouble is over.
func TestRefused(t *testing.T) {
	closed := func(k *Keeper) { k.Client.Transport.(*site).closed = true }
	tests := []struct {
		name   string
		faults simulated.Faults
		graph  simulated.GraphConfig
		change func(*Keeper)
		err    string // in the log
		hint   string
	}{
		{"no permission", simulated.Faults{GraphStatus: 403, GraphCode: "Authorization_RequestDenied", GraphMessage: "Insufficient privileges to complete the operation."}, simulated.GraphConfig{}, nil,
			"HTTP 403, Authorization_RequestDenied", "Application.ReadWrite.OwnedBy"},
		{"proof", simulated.Faults{GraphStatus: 401, GraphCode: "Authentication_MissingOrMalformed", GraphMessage: "Access Token missing or malformed."}, simulated.GraphConfig{}, nil,
			"Authentication_MissingOrMalformed", "tenant.endpoints.proof_audience"},
		{"wrong audience", simulated.Faults{}, simulated.GraphConfig{}, func(k *Keeper) { k.Audience = "00000003-0000-0000-c000-000000000000" },
			"Authentication_MissingOrMalformed", "tenant.endpoints.proof_audience"},
		{"object of the enterprise application", simulated.Faults{}, simulated.GraphConfig{}, func(k *Keeper) { k.ObjectID = service },
			"HTTP 404", "not the one of the enterprise application"},
		{"policy", simulated.Faults{}, simulated.GraphConfig{MostLife: 30 * day}, nil,
			"CredentialInvalidLifetimeAsPerAppPolicy", "app management policy"},
		{"busy", simulated.Faults{GraphStatus: 429, GraphCode: "TooManyRequests", GraphMessage: "Too many requests."}, simulated.GraphConfig{}, nil,
			"HTTP 429", "it is tried again"},
		{"a proxy's page", simulated.Faults{Status: 503}, simulated.GraphConfig{}, nil,
			"503", ""},
		{"no way to Graph", simulated.Faults{}, simulated.GraphConfig{}, closed,
			"gave no answer: connection refused", "tenant.endpoints.graph"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := start(t, 60*day, tt.graph)
				s.login.SetFaults(tt.faults)
				k := s.keeper("a")
				if tt.change != nil {
					tt.change(k)
				}
				stop := run(t, k)
				defer func() { stop() }()
				time.Sleep(40*day + time.Hour)
				st := k.State()
				if st.Err == nil || st.Failing.IsZero() || !strings.Contains(s.log.String(), tt.err) || !strings.Contains(s.log.String(), tt.hint) {
					t.Errorf("%+v\n%s", st, s.log)
				}
				if tt.faults.Status == 0 {
					s.mustWork(k)
				}
				if n := strings.Count(s.log.String(), "level=ERROR"); n < 2 || n > 6 {
					t.Errorf("%d attempts in an hour\n%s", n, s.log)
				}
				// The trouble ends, and so does the alarm; what the configuration had wrong comes with a new keeper.
				s.login.SetFaults(simulated.Faults{})
				if tt.change != nil {
					stop()
					s.closed = false
					k = s.keeper("a")
					stop = run(t, k)
				}
				time.Sleep(7 * time.Hour)
				s.mustWork(k)
				if st := k.State(); tt.graph.MostLife == 0 && (st.Made == "" || st.Err != nil || !st.Failing.IsZero()) {
					t.Errorf("afterwards: %+v\n%s", st, s.log)
				}
			})
		})
	}
}

// TestTwoHosts: each has a key of its own, and takes no other's away.
func TestTwoHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, 60*day, simulated.GraphConfig{KnownAfter: 3 * time.Minute})
		a, b := s.keeper("a"), s.keeper("b")
		defer run(t, a)()
		time.Sleep(13 * time.Hour)
		defer run(t, b)()
		for range 200 {
			time.Sleep(day)
			s.mustWork(a)
			s.mustWork(b)
		}
		time.Sleep(2 * day)
		if n := len(s.login.Keys(client)); n != 3 {
			t.Errorf("the app has %d certificates: want the administrator's and one of each host\n%s", n, s.log)
		}
	})
}

// TestByHand: what an administrator does beside it.
func TestByHand(t *testing.T) {
	renewed := func(t *testing.T) (*site, *Keeper, func()) {
		s := start(t, 60*day, simulated.GraphConfig{KnownAfter: time.Minute})
		k := s.keeper("a")
		stop := run(t, k)
		time.Sleep(40*day + time.Hour)
		if st := k.State(); st.Made == "" {
			t.Fatalf("%+v\n%s", st, s.log)
		}
		return s, k, stop
	}
	t.Run("a newer certificate is used", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, k, stop := renewed(t)
			defer stop()
			s.writePair("relay-app.pem", 300*day)
			s.mustWork(k)
			if st := k.State(); st.Made != "" || time.Until(st.Ends) < 299*day {
				t.Errorf("%+v", st)
			}
			// It was never uploaded. Ours goes on, and is replaced in time.
			for range 100 {
				time.Sleep(day)
				s.mustWork(k)
			}
			if st := k.State(); st.Made == "" || st.Err != nil || !strings.Contains(s.log.String(), "is not with the app") {
				t.Errorf("%+v\n%s", st, s.log)
			}
		})
	})
	t.Run("ours is removed in the portal", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, k, stop := renewed(t)
			defer stop()
			for _, key := range s.login.Keys(client)[1:] {
				s.login.ForgetKey(client, key.KeyID)
			}
			for range 30 * 2 {
				s.mustWork(k) // by the administrator's, then by the next of ours
				time.Sleep(day / 2)
			}
			if st := k.State(); st.Made == "" || time.Until(st.Ends) < 25*day {
				t.Errorf("%+v\n%s", st, s.log)
			}
		})
	})
	t.Run("now", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := start(t, 60*day, simulated.GraphConfig{})
			k := s.keeper("a")
			r, err := k.Rehearse(t.Context())
			if err != nil || r.Life != 60*day || len(s.login.Keys(client)) != 1 || !time.Now().Add(40*day).Equal(r.Due) {
				t.Fatalf("rehearsal: %+v, %v", r, err)
			}
			defer run(t, k)()
			synctest.Wait()
			k.Renew()
			time.Sleep(time.Second)
			if st := k.State(); st.Made == "" || st.Pending {
				t.Errorf("%+v\n%s", st, s.log)
			}
			s.mustWork(k)
			time.Sleep(3 * day)
			if n := strings.Count(s.log.String(), "a new key was made"); n != 1 {
				t.Errorf("%d keys were made\n%s", n, s.log)
			}
		})
	})
	t.Run("the one of the configuration has ended", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := start(t, 60*day, simulated.GraphConfig{})
			time.Sleep(61 * day)
			k := s.keeper("a")
			defer run(t, k)()
			time.Sleep(time.Hour)
			if st := k.State(); st.Err == nil || !strings.Contains(st.Err.Error(), "expired on") || len(s.login.Keys(client)) != 1 {
				t.Errorf("%+v\n%s", st, s.log)
			}
		})
	})
}

// TestDisk: a disk that takes nothing costs no certificate.
func TestDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, 60*day, simulated.GraphConfig{})
		k := s.keeper("a")
		if err := os.WriteFile(k.Dir, nil, 0o600); err != nil { // a file where the folder should be
			t.Fatal(err)
		}
		defer run(t, k)()
		time.Sleep(50 * day)
		s.mustWork(k)
		if st := k.State(); st.Err == nil || !strings.Contains(s.log.String(), "cannot be written") && !strings.Contains(s.log.String(), "cannot be read") {
			t.Errorf("%+v\n%s", st, s.log)
		}
		if n := len(s.login.Keys(client)); n != 1 {
			t.Errorf("the app has %d certificates", n)
		}
		if err := os.Remove(k.Dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(7 * time.Hour)
		if st := k.State(); st.Made == "" || st.Err != nil {
			t.Errorf("%+v\n%s", st, s.log)
		}
	})
}

// TestSilent: what a server repeats of our secrets shows nowhere.
func TestSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, 60*day, simulated.GraphConfig{})
		k := s.keeper("a")
		k.Client = &http.Client{Transport: echo{s}}
		defer run(t, k)()
		time.Sleep(41 * day)
		st := k.State()
		if st.Err == nil {
			t.Fatalf("%+v\n%s", st, s.log)
		}
		text := st.Err.Error() + s.log.String()
		if strings.Contains(text, "eyJ") || !strings.Contains(text, entra.Redacted) {
			t.Errorf("a token or proof shows:\n%s", text)
		}
	})
}

// echo is a Graph that repeats what it was asked.
type echo struct{ entra *site }

func (e echo) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host != "graph.microsoft.com" {
		return e.entra.RoundTrip(r)
	}
	var body struct{ Proof string }
	data, _ := io.ReadAll(r.Body)
	fmt.Sscanf(string(data[strings.Index(string(data), `"proof":`)+8:]), "%q", &body.Proof)
	w := httptest.NewRecorder()
	w.WriteHeader(http.StatusBadRequest)
	fmt.Fprintf(w, `{"error":{"code":"Request_BadRequest","message":"%s with %s is no good","innerError":{"request-id":"1"}}}`, body.Proof, r.Header.Get("Authorization"))
	return w.Result(), nil
}
