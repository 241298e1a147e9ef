package lab

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim/smtp"
)

// epoch is when the runs of these tests begin.
var epoch = time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)

// runOf makes messages from the seconds of their final dots and verdicts.
func runOf(pairs ...[2]float64) []*smtp.Message {
	var list []*smtp.Message
	at := func(s float64) time.Time { return epoch.Add(time.Duration(s * float64(time.Second))) }
	for _, p := range pairs {
		list = append(list, &smtp.Message{Dot: at(p[0]), Verdict: at(p[1]), Reply: "250 2.0.0 OK"})
	}
	return list
}

func TestWorstWindows(t *testing.T) {
	for _, tc := range []struct {
		name string
		run  []*smtp.Message
		want Windows
	}{
		{"nothing", nil, Windows{}},
		{"one", runOf([2]float64{0, 1}), Windows{1, 1, 1}},
		{"just a minute apart", runOf([2]float64{0, 0}, [2]float64{60, 60}), Windows{1, 1, 1}},
		{"nearly a minute apart", runOf([2]float64{0, 0}, [2]float64{59.999, 59.999}), Windows{2, 2, 2}},
		{"apart by dot and by verdict, but not if one is counted late and the next early", runOf([2]float64{0, 3}, [2]float64{61, 64}), Windows{1, 1, 2}},
		{"by dot alone", runOf([2]float64{0, 0}, [2]float64{59, 61}), Windows{2, 1, 2}},
		{"by verdict alone", runOf([2]float64{0, 3}, [2]float64{60, 62}), Windows{1, 2, 2}},
		{"three, the last two together", runOf([2]float64{0, 0}, [2]float64{50, 50}, [2]float64{100, 100}), Windows{2, 2, 2}},
	} {
		if got := WorstWindows(tc.run, time.Minute); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

func TestPaced(t *testing.T) {
	// 30 at once, and from the second minute on one every 2 s; some of the first are refused.
	var pairs [][2]float64
	for i := range 30 {
		pairs = append(pairs, [2]float64{0, float64(i) / 100})
	}
	for i := range 90 {
		pairs = append(pairs, [2]float64{60 + float64(i)*2, 60 + float64(i)*2})
	}
	run := runOf(pairs...)
	run[28].Reply, run[29].Reply = "432 4.3.2 Concurrent", "" // the last one lost its connection
	p := paced(run, 3)
	if math.Abs(p.PerMinute-30) > 0.01 || len(p.ByMinute) != 3 || p.ByMinute[0] != 30 || p.ByMinute[2] != 30 {
		t.Errorf("%.2f a minute, by minute %v, want 30 and 30 each", p.PerMinute, p.ByMinute)
	}
	if want := 3780 * time.Millisecond / 118; p.Uncertain.Round(time.Millisecond) != want.Round(time.Millisecond) {
		t.Errorf("%v from dot to verdict, want %v", p.Uncertain, want)
	}
	if p.RefusedIn != 1 || p.Windows.ByDot != 30 {
		t.Errorf("refused in %d of the minutes, windows %+v, want 1 and 30 by dot", p.RefusedIn, p.Windows)
	}
	if p := paced(runOf([2]float64{0, 1}), 2); p.PerMinute != 0 || len(p.ByMinute) != 2 {
		t.Errorf("one message: %+v", p)
	}
}

func TestPace(t *testing.T) {
	every := func(d time.Duration, n int) (times []time.Time) {
		for i := range n {
			times = append(times, epoch.Add(time.Duration(i)*d))
		}
		return times
	}
	for _, tc := range []struct {
		name  string
		times []time.Time
		want  float64
	}{
		{"nothing", nil, 0},
		{"one", every(time.Second, 1), 0},
		{"two", every(time.Second, 2), 60},
		{"fewer than a minute allows", every(10*time.Second, 20), 6},
		{"many", every(2050*time.Millisecond, 200), 29.268},
	} {
		if got := pace(tc.times); math.Abs(got-tc.want) > 0.001 {
			t.Errorf("%s: %.3f a minute, want %.3f", tc.name, got, tc.want)
		}
	}
}

func TestBound(t *testing.T) {
	for _, tc := range []struct {
		uncertain time.Duration
		want      float64
	}{
		{0, 1},
		{1750 * time.Millisecond, 0.9717},
		{6 * time.Second, 0.9091},
		{7500 * time.Millisecond, 0.8}, // three connections carry 24 a minute
		{10 * time.Second, 0.6},
	} {
		p := Pace{Uncertain: tc.uncertain}
		if got := p.Bound(); math.Abs(got-tc.want) > 0.0001 {
			t.Errorf("%v: %.4f, want %.4f", tc.uncertain, got, tc.want)
		}
	}
}

func TestMarkdown(t *testing.T) {
	got := Markdown(Ways()[:2], []Pace{{PerMinute: 29.1, Uncertain: 1750 * time.Millisecond, ByMinute: []int{29, 30}, Windows: Windows{30, 29, 30}, Most: 3, Refused: map[string]int{"451": 2, "432": 7}, RefusedIn: 1, Deferred: 9}, {PerMinute: 15, ByMinute: []int{15}}})
	const want = "| sendas | 29.1 | 97.0 % | 99.8 % of 97.2 % | 29 30 | 30 / 29 / 30 | 3 | 7 × 432, 2 × 451 | 1 | 9 |\n" +
		"| Postfix, `smtp_destination_rate_delay = 1s` | 15.0 | 50.0 % | – | 15 | 0 / 0 / 0 | 0 | 0 | 0 | 0 |\n"
	if !strings.HasSuffix(got, want) {
		t.Errorf("got %q, want it to end with %q", got, want)
	}
}
