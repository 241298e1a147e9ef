package config

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/milter"
	"github.com/sendas/sendas/milter/quota"
	"github.com/sendas/sendas/policy"
)

// BenchmarkLoadConfig loads 10,000 mailboxes and 10,000 clients with 50,000 networks.
func BenchmarkLoadConfig(b *testing.B) {
	data := bigConfig(10_000)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := Parse("sendas.yaml", data, SkipFiles); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDecideRatio compares a decision among 10,000 clients and mailboxes with one among
// 10; "ratio" is how many times longer it takes.
func BenchmarkDecideRatio(b *testing.B) {
	small, large := decider(b, 10), decider(b, 10_000)
	for i := range 1000 { // warm up
		small(i)
		large(i)
	}
	var tookSmall, tookLarge time.Duration
	const batch = 100 // so that reading the clock does not count
	n := 0
	for b.Loop() {
		start := time.Now()
		for i := range batch {
			small(n + i)
		}
		middle := time.Now()
		for i := range batch {
			large(n + i)
		}
		tookSmall += middle.Sub(start)
		tookLarge += time.Since(middle)
		n += batch
	}
	b.ReportMetric(float64(tookLarge)/float64(tookSmall), "ratio")
	b.ReportMetric(float64(tookSmall.Nanoseconds())/float64(n), "ns/small")
	b.ReportMetric(float64(tookLarge.Nanoseconds())/float64(n), "ns/large")
}

// decider returns a function that decides on a message of the i-th client, of n.
func decider(b *testing.B, n int) func(i int) {
	b.Helper()
	c, err := Parse("sendas.yaml", bigConfig(n), SkipFiles)
	if err != nil {
		b.Fatal(err)
	}
	list := make([]policy.Request, n)
	for i := range list {
		list[i] = policy.Request{
			Peer:    policy.Peer{Addr: netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 17})},
			Sender:  "root@printer",
			Rcpts:   []string{"someone@example.com"},
			Fields:  []policy.Field{{Name: "From", Value: fmt.Sprintf(" Printer %d <root@printer>", i)}},
			QueueID: "4XyZ", Now: time.Unix(1_700_000_000, 0),
		}
	}
	return func(i int) {
		if d := c.Policy.Decide(&list[i%n]); d.Action != policy.Accept {
			b.Fatalf("client %d: %v", i%n, d.Reply)
		}
	}
}

// BenchmarkConfigMemory loads 20,000 mailboxes and 20,000 clients as the milter does, and again
// while the first are in force. "kept-B/entry" is what stays of each entry, "load-MB" and
// "reload-MB" the most that the process had at a time, its program text aside.
func BenchmarkConfigMemory(b *testing.B) {
	const n = 20_000
	file := filepath.Join(b.TempDir(), "sendas.yaml")
	if err := os.WriteFile(file, siteConfig(n), 0o600); err != nil {
		b.Fatal(err)
	}
	series, quotas := milter.NewMetrics(prometheus.NewRegistry()), quota.NewDesk(quota.New())
	var inForce *Site
	load := func() {
		c, err := Load(file, CheckOwn)
		if err != nil {
			b.Fatal(err)
		}
		quotas.Use(c.ClientQuotas(), c.IdentityQuotas()...)
		series.Clients(c.Policy.ClientNames())
		inForce = c.WithoutLists()
	}
	var kept, first, again float64
	for b.Loop() {
		inForce = nil
		quotas.Use(nil)
		series.Clients(nil)
		before := liveHeap()
		first = max(first, peakMemory(load))
		kept = float64(liveHeap() - before)
		again = max(again, peakMemory(load))
	}
	runtime.KeepAlive(inForce)
	b.ReportMetric(kept/(2*n), "kept-B/entry")
	b.ReportMetric(first/1e6, "load-MB")
	b.ReportMetric(again/1e6, "reload-MB")
}

// liveHeap returns how many bytes are in use once all garbage is gone.
func liveHeap() uint64 {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// peakMemory returns the most bytes that the runtime had from the system while f ran.
func peakMemory(f func()) float64 {
	sample := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	look := func() uint64 {
		metrics.Read(sample)
		return sample[0].Value.Uint64() - sample[1].Value.Uint64()
	}
	debug.FreeOSMemory()
	peak := look()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for t := time.NewTicker(time.Millisecond); ; {
			select {
			case <-stop:
				return
			case <-t.C:
				peak = max(peak, look())
			}
		}
	}()
	f()
	close(stop)
	<-done
	return float64(max(peak, look()))
}

// siteConfig is the configuration of a large site as a script writes it from an inventory, and
// people have edited since: n mailboxes with aliases and Send As addresses, and n clients with one
// to three networks, of which most have their own from. It is the same for the same n.
func siteConfig(n int) []byte {
	g := siteWriter{rand: rand.New(rand.NewPCG(1, uint64(n)))}
	g.WriteString("# Written from the inventory; edit below.\ntenant:\n  id: contoso.onmicrosoft.com\n  domains: [contoso.com, contoso.de]\n" +
		"credentials:\n  relay-app:\n    client_id: 5f2c0d3e-1a2b-4c3d-8e4f-0123456789ab\n    client_secret_file: relay-app.secret\n" +
		"routes:\n  - {name: site, type: connector, endpoint: contoso-com.mail.protection.outlook.com}\n" +
		"  - {name: inside, type: direct, endpoint: contoso-com.mail.protection.outlook.com}\n" +
		"milter:\n  store: \"memory:\"\n\nnotices: device.00000@contoso.com\n\nmailboxes:\n")
	for i := range n {
		g.mailbox(i)
	}
	g.WriteString("\n# First match wins.\nclients:\n")
	for i := range n {
		g.client(i)
	}
	return g.Bytes()
}

// siteWriter writes entries whose keys come in any order.
type siteWriter struct {
	bytes.Buffer
	rand *rand.Rand
}

func (g *siteWriter) one(of int) bool { return g.rand.IntN(of) == 0 }

// entry writes an entry of a list.
func (g *siteWriter) entry(lines []string) {
	g.rand.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
	fmt.Fprintf(g, "  - %s\n", strings.Join(lines, "\n    "))
}

func (g *siteWriter) mailbox(i int) {
	lines := []string{fmt.Sprintf("address: device.%05d@contoso.com", i), "credential: relay-app"}
	if g.one(2) {
		lines = append(lines, fmt.Sprintf("aliases: [device.%05d@contoso.de]", i))
	}
	if !g.one(3) {
		lines = append(lines, fmt.Sprintf("send_as: [noreply.%05d@contoso.com, \"scan-%05d@contoso.de\"]", i, i))
	}
	if g.one(4) {
		lines = append(lines, "limits: {messages: 20/m, recipients: 2000/d, connections: 2}")
	}
	if g.one(8) {
		lines = append(lines, "plus_addresses: true  # Exchange Online takes them since the spring")
	}
	if g.one(5) {
		fmt.Fprintf(g, "  # room %d.%02d, ordered by department %d\n", i/100, i%100, i%17)
	}
	g.entry(lines)
}

func (g *siteWriter) client(i int) {
	lines := []string{fmt.Sprintf("name: site-%03d-device-%05d", i/100, i), g.networks(i)}
	if !g.one(6) {
		lines = append(lines, fmt.Sprintf("from: device.%05d@contoso.com", i))
	}
	if g.one(3) {
		lines = append(lines, fmt.Sprintf("senders: [device.%05d@contoso.com, \"*@contoso.de\"]", i))
	}
	if g.one(2) {
		lines = append(lines, "limits: {messages: [20/m, 1000/d], recipients: 500/d}")
		if g.one(3) {
			lines = append(lines, "on_limit: hold      # it cannot try again")
		}
	}
	if g.one(10) {
		lines = append(lines, "route: "+[]string{"site", "inside"}[i%2])
	}
	if g.one(5) {
		lines = append(lines, fmt.Sprintf("logins: [svc%05d]", i))
	}
	if g.one(8) {
		lines = append(lines, "display_name: \"{name} via {client}\"")
	}
	if g.one(5) {
		fmt.Fprintf(g, "  # %s, serial number %08d\n", []string{"MFP", "scanner", "ERP", "UPS"}[i%4], i*7919)
	}
	g.entry(lines)
}

// networks writes one to three networks, on one line or several.
func (g *siteWriter) networks(i int) string {
	list := []string{fmt.Sprintf("10.%d.%d.0/24", i>>8, i&255)}
	if g.one(2) {
		list = append(list, fmt.Sprintf("\"2001:db8:%x:%x::/64\"", i>>8, i))
	}
	if g.one(3) {
		list = append(list, fmt.Sprintf("192.168.%d.%d", i>>8&255, i&255))
	}
	if g.one(3) {
		return "networks:\n      - " + strings.Join(list, "\n      - ")
	}
	return "networks: [" + strings.Join(list, ", ") + "]"
}
