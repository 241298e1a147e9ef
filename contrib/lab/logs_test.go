package lab

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestLogsTellTheStory: what docs/logs.md shows of one message is what Postfix and the services
// write, line by line.
func TestLogsTellTheStory(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second, Activated: true})
	mail := Stories()[0].Mail
	if _, err := Send(ctx, s.Postfix.SMTPAddr(), mail); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitMessages(ctx, 1); err != nil {
		t.Fatal(err)
	}
	var story []string
	err := poll(ctx, func() (done bool, err error) {
		story, done, err = tellStory(s)
		return done, err
	})
	if err != nil {
		t.Fatalf("%v: so far\n%s", err, strings.Join(story, "\n"))
	}
	b, err := os.ReadFile("../../docs/logs.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(b), "```\n")
	example, _, _ = strings.Cut(example, "```")
	want := strings.Split(strings.TrimSpace(example), "\n")
	for i, line := range want {
		want[i] = shape(line)
	}
	got := slices.Clone(story)
	for i, line := range got {
		got[i] = shape(line)
	}
	if !slices.Equal(got, want) {
		t.Errorf("the story is\n%s\nits shape\n%s\nthe shape of docs/logs.md\n%s", strings.Join(story, "\n"), strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	checkFound(t, ctx, s, regexp.MustCompile(`qid=(\w+) `).FindStringSubmatch(s.Milter.Log())[1])
	for name, log := range map[string]string{"milter": s.Milter.Log(), "token service": s.Token.Log()} {
		if strings.Contains(log, "level=ERROR") || strings.Contains(log, "level=WARN") {
			t.Errorf("the %s complains of a message that went well: %s", name, log)
		}
	}
}

// tellStory finds the lines of the one message as an administrator does: by the queue id in what
// Postfix and the milter log, and by the process id in what the token service logs. It is done when
// the message has left the queue.
func tellStory(s *Site) (story []string, done bool, err error) {
	log, err := s.Postfix.Log()
	if err != nil {
		return nil, false, err
	}
	line := regexp.MustCompile(`(?m)^.*qid=(\w+) .*$`).FindStringSubmatch(s.Milter.Log())
	if line == nil {
		return nil, false, nil
	}
	id := line[1]
	for l := range strings.Lines(log) {
		if !strings.Contains(l, " "+id+":") {
			continue
		}
		l = strings.TrimSuffix(l, "\n")
		story = append(story, l)
		if strings.Contains(l, "/cleanup[") && len(story) == 2 {
			story = append(story, asJournal("sendas-milter", l, line[0]))
		}
		m := regexp.MustCompile(`/smtp\[(\d+)\]`).FindStringSubmatch(l)
		if m == nil {
			continue
		}
		delivery := regexp.MustCompile(fmt.Sprintf(`(?m)^.*msg=delivery pid=%s .*$`, m[1])).FindString(s.Token.Log())
		if delivery == "" {
			return story, false, nil
		}
		story = slices.Insert(story, len(story)-1, asJournal("sendas-token", l, delivery))
	}
	return story, strings.Contains(log, id+": removed"), nil
}

// asJournal is a line of a service as it stands in mail.log beside one of Postfix: with the time
// and host of that one, and no time of its own.
func asJournal(name, beside, line string) string {
	_, text, _ := strings.Cut(line, "level=")
	head := regexp.MustCompile(`^\w+ +\d+ [0-9:]+ \S+`).FindString(beside)
	return fmt.Sprintf("%s %s[1]: level=%s", head, name, text)
}

// shape replaces all that differs from message to message, and from host to host.
func shape(line string) string {
	for _, r := range []struct{ form, with string }{
		{`^\w+ +\d+ [0-9:]+ \S+ `, "TIME HOST "}, {`postfix[^/ ]*/`, "postfix/"}, {`\[\d+\]: `, "[PID]: "}, {`pid=\d+`, "pid=PID"}, {`\b(PID\]: |qid=)([0-9A-F]{8,}|[0-9B-DF-HJ-NP-TV-Zb-df-hj-np-tv-z]{10,})\b`, "${1}ID"},
		{`delays?=[0-9./]+`, "delay"}, {`waited=\S+ took=\S+`, "durations"}, {`<[^<>@ ]*[0-9a-fA-F]{6}[^<> ]*>`, "<ID>"}, {`message-id=<[^>]*>`, "message-id=<ID>"},
		{`\[[0-9.]+\]:\d+`, "[IP]:PORT"}, {`\[Hostname=[^]]*\]`, "[Hostname]"}, {`size=\d+`, "size"},
	} {
		line = regexp.MustCompile(r.form).ReplaceAllString(line, r.with)
	}
	return line
}
