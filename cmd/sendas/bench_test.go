package main

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/sendas/sendas/policy"
)

// BenchmarkLoadConfig loads 10,000 mailboxes and 10,000 clients with 50,000 networks.
func BenchmarkLoadConfig(b *testing.B) {
	data := bigConfig(10_000)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := parseConfig("sendas.yaml", data, SkipFiles); err != nil {
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
	c, err := parseConfig("sendas.yaml", bigConfig(n), SkipFiles)
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
