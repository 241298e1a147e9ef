// Demo shows the whole way of a message: devices, a private Postfix, both services, and a
// simulated Exchange Online, all on loopback. It prints what was asked, what left and what
// Exchange Online said, and exits with 0 only if every outcome is the right one.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/sendas/sendas/contrib/exosim"
	"github.com/sendas/sendas/contrib/lab"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	build := flags.String("build", "build", "the `folder` with sendas and libsendas-xoauth2.so")
	minute := flags.Duration("minute", 20*time.Second, "how long Microsoft's minute lasts here; 1m is the real one")
	keep := flags.Bool("keep", false, "leave everything running until interrupted")
	if err := flags.Parse(args); err != nil {
		return 64
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := demo(ctx, stdout, *build, *minute, *keep); err != nil {
		fmt.Fprintln(stderr, "demo: error:", err)
		return 1
	}
	return 0
}

const burst = 60

func demo(ctx context.Context, out io.Writer, build string, minute time.Duration, keep bool) (err error) {
	build, err = filepath.Abs(build)
	if err != nil {
		return err
	}
	dir, err := lab.Publish(build)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	fmt.Fprintln(out, "starting a simulated Exchange Online, a private Postfix, sendas milter and sendas token, on loopback")
	s, err := lab.StartSite(ctx, lab.SiteConfig{Sendas: filepath.Join(dir, "sendas"), PluginDir: dir, Minute: minute,
		Exosim: func(c *exosim.Config) { c.VerdictMin, c.VerdictMax = minute/600, minute/100 }})
	if err != nil {
		return err
	}
	defer func() {
		if e := s.Stop(); e != nil && err == nil {
			err = fmt.Errorf("stopping: %w", e)
		}
	}()
	wrong, err := stories(ctx, out, s)
	if err != nil {
		return err
	}
	n, err := rush(ctx, out, s, minute)
	if err != nil {
		return err
	}
	wrong += n
	wrong += secrets(ctx, out, s)
	where(out, s)
	if keep {
		fmt.Fprintln(out, "\neverything runs on until you press Ctrl-C")
		<-ctx.Done()
	}
	if wrong > 0 {
		return fmt.Errorf("%d outcomes are not the right ones", wrong)
	}
	fmt.Fprintln(out, "\nevery outcome is the right one")
	return nil
}

// stories sends the messages of a day and prints the table.
func stories(ctx context.Context, out io.Writer, s *lab.Site) (wrong int, err error) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nWHO\tASKED\tWHAT LEFT\tVERDICT\t")
	arrived := 0
	for _, story := range lab.Stories() {
		res, err := lab.Send(ctx, s.Postfix.SMTPAddr(), story.Mail)
		if err != nil {
			return wrong, err
		}
		left, verdict, mark := "nothing", res.Verdict().Line(), "ok"
		if res.Accepted() {
			arrived++
			if err := s.WaitMessages(ctx, arrived); err != nil {
				return wrong, err
			}
			all := s.Exosim.Messages()
			m := all[len(all)-1]
			left, verdict = strings.Join(m.Header("From"), " | "), "Exchange Online: "+m.Reply
			if bad := story.Compare(m); bad != "" || story.Refused != "" {
				mark, wrong = "WRONG: "+bad, wrong+1
			}
		} else if story.Refused == "" || !strings.HasPrefix(verdict, story.Refused) {
			mark, wrong = "WRONG", wrong+1
		}
		if !res.Accepted() {
			verdict = "sendas: " + verdict
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", story.Name, short(story.Asked(), 36), short(left, 52), short(verdict, 62), mark)
	}
	return wrong, w.Flush()
}

func short(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// rush sends the burst of an ERP and measures it.
func rush(ctx context.Context, out io.Writer, s *lab.Site, minute time.Duration) (wrong int, err error) {
	fmt.Fprintf(out, "\nan ERP sends %d messages at once; Microsoft takes 30 a minute, and the minute lasts %v here\n", burst, minute)
	before, begin := s.Accepted(), time.Now()
	if err := s.Burst(ctx, burst); err != nil {
		return 0, err
	}
	fmt.Fprintf(out, "  Postfix has them all after %.1f s; the queue waits, no device does\n", time.Since(begin).Seconds())
	if err := s.WaitMessages(ctx, before+burst); err != nil {
		return 0, err
	}
	took := time.Since(begin)
	u := s.Exosim.Usage("erp@contoso.com")
	worst := max(u.WorstByDot, u.WorstByVerdict)
	fmt.Fprintf(out, "  all %d arrived after %.1f s: %.1f a minute; worst minute %d of 30; at most %d at one time\n",
		burst, took.Seconds(), burst*float64(minute)/float64(took), worst, u.MaxInData)
	log, err := s.Postfix.Log()
	if err != nil {
		return 0, err
	}
	deferred := strings.Count(log, "status=deferred")
	fmt.Fprintf(out, "  deferred: %d, bounced: %d, refused by Exchange Online: %d\n", deferred, strings.Count(log, "status=bounced"), len(u.Refused))
	if worst > 30 || u.MaxInData > 3 || deferred > 0 || len(u.Refused) > 0 || strings.Contains(log, "status=bounced") {
		wrong++
	}
	return wrong, nil
}

// secrets looks for the client secret and for access tokens in all that anybody can read.
func secrets(ctx context.Context, out io.Writer, s *lab.Site) (wrong int) {
	n := 0
	for where, text := range s.Outputs(ctx) {
		n++
		if strings.Contains(text, s.Secret) || strings.Contains(text, "eyJ") {
			fmt.Fprintf(out, "  a secret shows in %s\n", where)
			wrong++
		}
	}
	if wrong == 0 {
		fmt.Fprintf(out, "\nno secret and no token in %d logs, figures and command lines\n", n)
	}
	return wrong
}

// where says what to look at next.
func where(out io.Writer, s *lab.Site) {
	fmt.Fprintln(out, `
where to look next
  README.md                   the smallest real configuration, and where the rest is
  packaging/sendas.yaml       every key, with what it does
  contrib/lab/site.go         what this demo is made of
  go run ./contrib/lab/cmd/demo -keep -minute 1m    the same with a real minute, left running; then:`)
	for _, u := range s.MetricsURLs() {
		fmt.Fprintln(out, "    curl "+u)
	}
}
