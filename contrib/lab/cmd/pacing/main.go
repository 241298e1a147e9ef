// Pacing measures how much of Microsoft's 30 messages a minute a backlog uses, and whether it ever
// passes them: by sendas, and by what Postfix can do alone. Everything is on loopback, with real
// minutes, and goes on at the same time. It prints Markdown, and exits with 0 only if sendas has
// kept what it promises.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/sendas/sendas/contrib/lab"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("pacing", flag.ContinueOnError)
	flags.SetOutput(stderr)
	build := flags.String("build", "build", "the `folder` with sendas and libsendas-xoauth2.so")
	minutes := flags.Int("minutes", 6, "how many minutes to measure after the first one")
	seed := flags.Uint64("seed", 1, "of the random verdicts")
	if err := flags.Parse(args); err != nil {
		return 64
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := measure(ctx, stdout, *build, *minutes, *seed); err != nil {
		fmt.Fprintln(stderr, "pacing: error:", err)
		return 1
	}
	return 0
}

// settings are how long the service takes, and what sendas must use then of the allowance, and of
// the most that there is, which is 60 s ÷ (60 s + the time from dot to verdict): 97.2 % for the
// first ones, of which three messages in a thousand are left for chance.
var settings = []struct {
	about             string
	quickest, slowest time.Duration // verdicts
	handshake         time.Duration // before the message
	share, ofBound    float64
}{
	{"verdicts after 0.5 to 3 s, as Exchange Online takes", 500 * time.Millisecond, 3 * time.Second, 0, 0.967, 0.995},
	{"the same, and 1 s from the look-up to DATA", 500 * time.Millisecond, 3 * time.Second, time.Second, 0.967, 0.995},
	{"the same, and 2 s from the look-up to DATA", 500 * time.Millisecond, 3 * time.Second, 2 * time.Second, 0.967, 0.995},
	{"verdicts after 0.1 to 0.3 s", 100 * time.Millisecond, 300 * time.Millisecond, 0, 0.99, 0.995},
	// Three connections can carry 3 ÷ 7.5 s = 24 messages a minute, 80 % of the allowance.
	{"verdicts after 5 to 10 s", 5 * time.Second, 10 * time.Second, 0, 0.75, 0.95},
}

// waysOf returns what is compared: where only what comes before the message is different, Postfix
// alone is no other than before.
func waysOf(handshake time.Duration) []lab.Way {
	if handshake > 0 {
		return lab.Ways()[:1]
	}
	return lab.Ways()
}

func measure(ctx context.Context, out io.Writer, build string, minutes int, seed uint64) error {
	build, err := filepath.Abs(build)
	if err != nil {
		return err
	}
	dir, err := lab.Publish(build)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	results := make([][]lab.Pace, len(settings))
	errs := make(chan error, len(settings)*len(lab.Ways()))
	var (
		wg    sync.WaitGroup
		start sync.Mutex
	)
	for i, x := range settings {
		ways := waysOf(x.handshake)
		results[i] = make([]lab.Pace, len(ways))
		for j, w := range ways {
			wg.Go(func() {
				c := lab.PaceConfig{Sendas: filepath.Join(dir, "sendas"), PluginDir: dir, Way: w, Quickest: x.quickest, Slowest: x.slowest, Handshake: x.handshake,
					Minutes: minutes, Backlog: 100 * (minutes + 1), Seed: seed}
				p, err := lab.MeasurePace(ctx, c, func() func() { start.Lock(); return start.Unlock })
				if err != nil {
					errs <- fmt.Errorf("%s, %s: %w", w.Name, x.about, err)
				}
				results[i][j] = p
			})
		}
	}
	wg.Wait()
	close(errs)
	for e := range errs {
		err = errors.Join(err, e)
	}
	if err != nil {
		return err
	}
	return report(out, results, minutes)
}

// report prints the tables, and returns which promise was broken.
func report(out io.Writer, results [][]lab.Pace, minutes int) (err error) {
	fmt.Fprintf(out, "One mailbox, a backlog, %d minutes after the first one.\n", minutes)
	for i, x := range settings {
		ways := waysOf(x.handshake)
		fmt.Fprintf(out, "\n%s:\n\n%s", x.about, lab.Markdown(ways, results[i]))
		for j, p := range results[i] {
			if !ways[j].Sendas {
				continue
			}
			if share := p.Share(); share < x.share || share/p.Bound() < x.ofBound {
				err = errors.Join(err, fmt.Errorf("%s: sendas used %.3f of the allowance, %.3f of the most that there is, want %.3f and %.3f", x.about, share, share/p.Bound(), x.share, x.ofBound))
			}
			if p.Windows.Anyhow > 30 || p.Most > 3 || len(p.Refused) > 0 || p.Deferred > 0 || p.Bounced > 0 {
				err = errors.Join(err, fmt.Errorf("%s: sendas: %+v, want at most 30 in any window, 3 at a time, none refused, deferred or bounced", x.about, p))
			}
		}
	}
	return err
}
