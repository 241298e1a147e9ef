package milter_test

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/lab"
)

// The benchmarks compare sendas with the least that a filter can do: one in C with libmilter, one
// in Go with go-milter. Each filter is a process of its own and makes the same changes; they work
// in turn, in rounds, and figures are medians of the rounds, so that a noisy machine is noisy for
// all. "xC-msgs" is sendas' messages per second as a multiple of the filter's in C, "xC-cpu" the
// same of the CPU time that the filter itself needs for a message; "xgo" compares with go-milter.
// B/op and allocs/op are those of the load generator, and an operation is the whole contest.

const (
	patience = time.Minute // bounds every wait; nothing takes this long unless it is broken
	sessions = 4           // at once
)

// BenchmarkTransaction plays the milter protocol as Postfix does: sessions of many messages, each
// with two recipients, fifteen header fields, and a From that must be changed.
func BenchmarkTransaction(b *testing.B) {
	for _, clients := range []int{1, 20_000} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) { transact(b, clients) })
	}
}

func transact(b *testing.B, clients int) {
	dir := b.TempDir()
	c := contest{rounds: 12, messages: 4000, filters: []*filter{
		startSendas(b, filepath.Join(dir, "1"), clients), startC(b, filepath.Join(dir, "2")), startGoMilter(b, filepath.Join(dir, "3")),
	}}
	for _, f := range c.filters {
		f.connect(b)
	}
	for b.Loop() {
		c.run(b, (*filter).send)
	}
	c.report(b)
}

// BenchmarkPostfix sends through a Postfix that asks the filter and then throws the mail away.
func BenchmarkPostfix(b *testing.B) {
	p, addrs := startPostfix(b)
	c := contest{rounds: 10, messages: 800, filters: []*filter{
		startSendas(b, filepath.Join(p.SocketDir(), "sendas"), 100), startC(b, filepath.Join(p.SocketDir(), "libmilter")),
	}}
	source, message := findSource(b), writeMessage(b)
	sent := 0
	for _, f := range c.filters {
		if err := os.Chmod(f.socket, 0o666); err != nil { // libmilter leaves it to the umask
			b.Fatal(err)
		}
	}
	for b.Loop() {
		c.run(b, func(f *filter, n int) error {
			sent += n
			return smtpSource(b.Context(), source, addrs[f.name], message, n)
		})
	}
	waitRewritten(b, p, sent)
	c.report(b)
}

// BenchmarkRecord compares sendas with a record and without, in turn: "xoff-msgs" is its messages per
// second with one as a multiple of those without. Over the bare protocol nobody does anything but ask
// the milter, thousands of times a second; through Postfix it is what a relay sees.
func BenchmarkRecord(b *testing.B) {
	both := func(b *testing.B, dir string) []*filter {
		return []*filter{startSendas(b, filepath.Join(dir, "sendas"), 100), startSendasWith(b, "off", filepath.Join(dir, "libmilter"), 100, "record: off\n")}
	}
	b.Run("protocol", func(b *testing.B) {
		c := contest{rounds: 12, messages: 1000, filters: both(b, b.TempDir())}
		for _, f := range c.filters {
			f.connect(b)
		}
		for b.Loop() {
			c.run(b, (*filter).send)
		}
		c.reportRecord(b)
	})
	b.Run("postfix", func(b *testing.B) {
		p, addrs := startPostfix(b)
		c := contest{rounds: 10, messages: 400, filters: both(b, p.SocketDir())}
		addrs["off"] = addrs["libmilter"]
		source, message := findSource(b), writeMessage(b)
		for _, f := range c.filters {
			if err := os.Chmod(f.socket, 0o666); err != nil {
				b.Fatal(err)
			}
		}
		for b.Loop() {
			c.run(b, func(f *filter, n int) error { return smtpSource(b.Context(), source, addrs[f.name], message, n) })
		}
		c.reportRecord(b)
	})
}

// reportRecord prints the medians, and the ratio.
func (c *contest) reportRecord(b *testing.B) {
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(c.rates[0]), "on-msgs/s")
	b.ReportMetric(median(c.rates[1]), "off-msgs/s")
	b.ReportMetric(median(ratios(c.rates[0], c.rates[1])), "xoff-msgs")
}

// A contest is the same work for several filters in turn.
type contest struct {
	filters          []*filter // first ours, then the one in C
	rounds, messages int       // messages in a round, of each filter

	rates, costs [][]float64 // of each filter in each round: messages/s, and µs of its CPU time per message
}

// run plays all rounds. Each begins with another filter.
func (c *contest) run(b *testing.B, work func(f *filter, n int) error) {
	b.Helper()
	if c.rates == nil {
		c.rates, c.costs = make([][]float64, len(c.filters)), make([][]float64, len(c.filters))
	}
	for round := range c.rounds + 1 {
		for i := range c.filters {
			i = (i + round) % len(c.filters)
			f := c.filters[i]
			began, cpu := time.Now(), f.cpu()
			if err := work(f, c.messages); err != nil {
				b.Fatalf("%s: %v", f.name, err)
			}
			took, used := time.Since(began), f.cpu()-cpu
			if round > 0 { // the first one warms up
				c.rates[i] = append(c.rates[i], float64(c.messages)/took.Seconds())
				c.costs[i] = append(c.costs[i], float64(used.Microseconds())/float64(c.messages))
			}
		}
	}
}

// report prints the medians, and the ratios to each of the other filters.
func (c *contest) report(b *testing.B) {
	b.ReportMetric(0, "ns/op")
	for i, f := range c.filters {
		b.ReportMetric(median(c.rates[i]), f.name+"-msgs/s")
		b.ReportMetric(median(c.costs[i]), f.name+"-cpu-µs/msg")
	}
	for i, unit := range []string{"xC", "xgo"}[:len(c.filters)-1] {
		b.ReportMetric(median(ratios(c.rates[0], c.rates[i+1])), unit+"-msgs")
		b.ReportMetric(median(ratios(c.costs[0], c.costs[i+1])), unit+"-cpu")
	}
}

func ratios(a, b []float64) []float64 {
	list := make([]float64, len(a))
	for i := range a {
		list[i] = a[i] / b[i]
	}
	return list
}

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	return (list[(len(list)-1)/2] + list[len(list)/2]) / 2
}

// startPostfix starts a Postfix with a port for each filter.
func startPostfix(b *testing.B) (p *lab.Postfix, addrs map[string]string) {
	b.Helper()
	dir, err := lab.MakeDir()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	config := lab.PostfixConfig{Dir: dir, Main: map[string]string{
		"default_transport":                   "discard:",
		"milter_default_action":               "tempfail",
		"smtpd_client_connection_count_limit": "0",
		"default_process_limit":               "100",
	}}
	addrs = map[string]string{}
	for _, name := range []string{"sendas", "libmilter"} {
		addrs[name] = freeAddr(b)
		config.Master = append(config.Master, addrs[name]+" inet n - y - - smtpd -o smtpd_milters=unix:sendas/"+name)
	}
	p, err = lab.StartPostfix(b.Context(), config)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := p.Stop(); err != nil {
			b.Error(err)
		}
	})
	return p, addrs
}

func freeAddr(b *testing.B) string {
	b.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// writeMessage writes the message of BenchmarkTransaction to a file.
func writeMessage(b *testing.B) string {
	b.Helper()
	var text []byte
	for _, f := range benchHeader {
		text = fmt.Appendf(text, "%s: %s\n", f[0], f[1])
	}
	name := filepath.Join(b.TempDir(), "message")
	if err := os.WriteFile(name, append(text, "\nThe scan is attached.\n"...), 0o644); err != nil {
		b.Fatal(err)
	}
	return name
}

// findSource finds smtp-source(1), which is seldom in the PATH of anyone but root.
func findSource(b *testing.B) string {
	b.Helper()
	for _, name := range []string{"smtp-source", "/usr/sbin/smtp-source"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	b.Fatal("smtp-source of Postfix is not installed: run make deps")
	return ""
}

// smtpSource sends n messages to two recipients each.
func smtpSource(ctx context.Context, source, addr, message string, n int) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, source, "-d", "-s", strconv.Itoa(sessions), "-m", strconv.Itoa(n), "-r", "2",
		"-f", "mfp3@contoso.net", "-t", "someone@example.net", "-F", message, addr).CombinedOutput()
	if err != nil || len(out) > 0 { // some refusals it only warns of
		return fmt.Errorf("smtp-source: %v: %s", cmp.Or(ctx.Err(), err), out)
	}
	return nil
}

// waitRewritten makes sure that all messages went through a filter.
func waitRewritten(b *testing.B, p *lab.Postfix, want int) {
	b.Helper()
	got := 0
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		log, err := p.Log()
		if err != nil {
			b.Fatal(err)
		}
		if got = strings.Count(log, ": from=<scan@contoso.com>,"); got >= want {
			break
		}
	}
	if got != want {
		b.Fatalf("%d of %d messages left as scan@contoso.com", got, want)
	}
}
