package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/smtp"
)

const hangup = syscall.SIGHUP

type mailboxSettings = directory.Mailbox

// SetMailbox changes the mailbox erp@contoso.com of the simulator.
func (s *Site) SetMailbox(change func(*mailboxSettings)) {
	s.Exosim.SetMailbox("erp@contoso.com", change)
}

// Postconf changes settings of main.cf ("name=value"); Reload puts them into force.
func (p *Postfix) Postconf(ctx context.Context, settings ...string) error {
	_, err := p.command(ctx, nil, "postconf", append([]string{"-c", p.ConfigDir(), "-e"}, settings...)...)
	return err
}

// Outputs returns all that the site shows to anybody who may read logs, figures and the process
// list, by where it shows.
func (s *Site) Outputs(ctx context.Context) map[string]string {
	postfix, _ := s.Postfix.Log()
	out := map[string]string{"Postfix's log": postfix, "the milter's log": s.Milter.Log(), "the token service's log": s.Token.Log()}
	for _, url := range s.MetricsURLs() {
		out[url], _ = get(ctx, url)
	}
	ready := "http://" + s.tokenHTTP + "/readyz"
	out[ready], _ = get(ctx, ready)
	lists, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range lists {
		b, _ := os.ReadFile(f)
		out[f] = string(b)
	}
	return out
}

func get(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

// WaitMetric waits until both services show the line.
func (s *Site) WaitMetric(ctx context.Context, line string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return poll(ctx, func() (bool, error) {
		for _, url := range s.MetricsURLs() {
			if text, err := get(ctx, url); err != nil || !slices.Contains(strings.Split(text, "\n"), line) {
				return false, nil
			}
		}
		return true, nil
	})
}

// Compare says how a message that arrived differs from what the story promises; "" if it does not.
func (s Story) Compare(m *smtp.Message) string {
	one := func(name string) string { return strings.Join(m.Header(name), " | ") }
	_, body, _ := bytes.Cut(m.Data, []byte("\r\n\r\n"))
	switch {
	case !m.Accepted():
		return "Exchange Online said " + m.Reply
	case one("From") != s.From:
		return fmt.Sprintf("From is %q, want %q", one("From"), s.From)
	case m.Sender != s.Sender:
		return fmt.Sprintf("the envelope sender is %q, want %q", m.Sender, s.Sender)
	case m.Mailbox != s.Mailbox:
		return fmt.Sprintf("it came through %q, want %q", m.Mailbox, s.Mailbox)
	case string(body) != Body:
		return fmt.Sprintf("the body is %q, want %q", body, Body)
	case !bytes.Contains(m.Data, []byte("\r\nX-Untouched:  two  blanks\tand a tab \r\n")):
		return "a header that nothing should touch has changed"
	}
	for _, h := range s.Has {
		name, value, _ := strings.Cut(h, ": ")
		if got := one(name); !strings.HasPrefix(got, value) || got == "" {
			return fmt.Sprintf("%s is %q, want %q", name, got, value)
		}
	}
	for _, name := range s.HasNot {
		if got := one(name); got != "" {
			return fmt.Sprintf("%s is %q, want none", name, got)
		}
	}
	return ""
}

// burstMail returns the n-th message of an ERP's burst.
func burstMail(n int) Mail {
	return Mail{XClient: sap, From: "billing@contoso.com", To: []string{fmt.Sprintf("customer%d@fabrikam.com", n)},
		Data: message("From: Billing <billing@contoso.com>", fmt.Sprintf(storyID, fmt.Sprintf("invoice-%d", n)), storyDate)}
}

// Burst sends n messages of an ERP as quickly as Postfix takes them.
func (s *Site) Burst(ctx context.Context, n int) error {
	var (
		wg   sync.WaitGroup
		next = make(chan int)
		errs = make(chan error, n)
	)
	for range 4 {
		wg.Go(func() {
			for i := range next {
				if res, err := Send(ctx, s.Postfix.SMTPAddr(), burstMail(i)); err != nil || !res.Accepted() {
					errs <- fmt.Errorf("message %d of the burst: %v, %w", i, res.Verdict(), err)
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// Share returns which part of an allowance of limit messages per period a mailbox used while it had
// a backlog: in the whole periods from one period after its first message to its last.
func (s *Site) Share(mailbox string, limit int, period time.Duration) float64 {
	var times []time.Time
	for _, m := range s.Exosim.Messages() {
		if m.Accepted() && m.Mailbox == mailbox {
			times = append(times, m.Verdict)
		}
	}
	if len(times) == 0 {
		return 0
	}
	slices.SortFunc(times, time.Time.Compare)
	begin := times[0].Add(period)
	periods := int(times[len(times)-1].Sub(begin) / period)
	end, n := begin.Add(time.Duration(periods)*period), 0
	for _, t := range times {
		if t.After(begin) && !t.After(end) {
			n++
		}
	}
	if periods < 1 {
		return 0
	}
	return float64(n) / float64(limit*periods)
}

// MakeCertificate makes a certificate and a file with certificate and key for the site's app, and
// returns the same ones when asked again.
func MakeCertificate(dir string) (certFile, bothFile string, err error) {
	certFile, bothFile = filepath.Join(dir, "relay-app.crt"), filepath.Join(dir, "relay-app.pem")
	if _, err := os.Stat(bothFile); err == nil {
		return certFile, bothFile, nil
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return "", "", err
	}
	now := time.Now()
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "relay-app"}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(0, 6, 0)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		return "", "", err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", "", err
	}
	cert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	if err := os.WriteFile(certFile, []byte(cert), 0o644); err != nil {
		return "", "", err
	}
	return certFile, bothFile, writeOwned(bothFile, cert+string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})), 0o600, tokenUser)
}
