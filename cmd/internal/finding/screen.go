package finding

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// maxCols is how long a line may be on a terminal, however wide that is: nobody reads longer ones.
const maxCols = 160

// A Screen shows checks to a person: on a terminal in lines that fit, in colours, and with a line
// that says what is being done; elsewhere a check has three lines and no more. It belongs to one
// goroutine, but for Busy.
type Screen struct {
	w     io.Writer
	cols  int  // 0: no terminal
	moves bool // it knows more than plain lines
	color bool // and NO_COLOR is not set (no-color.org)
	busy  bool // the last line is one of Busy
}

// NewScreen returns what can be shown there.
func NewScreen(w io.Writer) *Screen {
	cols, _ := TerminalSize(w)
	term := os.Getenv("TERM")
	moves := cols > 0 && term != "" && term != "dumb"
	return &Screen{w: w, cols: min(cols, maxCols), moves: moves, color: moves && os.Getenv("NO_COLOR") == ""}
}

// TerminalSize returns columns and rows if the writer is a terminal, else 0.
func TerminalSize(w io.Writer) (cols, rows int) {
	f, ok := w.(*os.File)
	if !ok {
		return 0, 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	if size.Col == 0 || size.Row == 0 { // a serial line does not know
		return 80, 24
	}
	return int(size.Col), int(size.Row)
}

// Check shows a check.
func (s *Screen) Check(c *Check) {
	s.wipe()
	word, code := string(c.Status), ""
	switch c.Status {
	case Fail:
		word, code = "FAIL", "1;31"
	case Warn:
		code = "33"
	}
	s.print(fmt.Sprintf("%-4s", word), code, fmt.Sprintf("  %s: %s", c.What, c.Found))
	if c.Means != "" {
		s.print("", "", "  means: "+c.Means)
	}
	if c.Do != "" {
		s.print("", "", "  do: "+c.Do)
	}
}

// Line shows a line of its own.
func (s *Screen) Line(format string, args ...any) {
	s.wipe()
	s.print("", "", fmt.Sprintf(format, args...))
}

// Busy says on a terminal what is being done, until there is something else to say.
func (s *Screen) Busy(format string, args ...any) {
	if !s.moves {
		return
	}
	text := []rune(fmt.Sprintf(format, args...))
	fmt.Fprintf(s.w, "\r%s\x1b[K", string(text[:min(len(text), s.cols-1)]))
	s.busy = true
}

// Done takes the line of Busy away.
func (s *Screen) Done() { s.wipe() }

func (s *Screen) wipe() {
	if s.busy {
		fmt.Fprint(s.w, "\r\x1b[K")
		s.busy = false
	}
}

// print writes a word, in colour where there is one, and text behind it, in as many lines as it
// needs.
func (s *Screen) print(word, code, text string) {
	lines := []string{word + text}
	if s.cols > 0 {
		lines = fold(word+text, s.cols)
	}
	if code != "" && s.color {
		lines[0] = "\x1b[" + code + "m" + word + "\x1b[0m" + strings.TrimPrefix(lines[0], word)
	}
	fmt.Fprintln(s.w, strings.Join(lines, "\n"))
}

// indent begins the further lines of a text.
const indent = "      "

// fold divides a text into lines of so many columns, at blanks. Commands stay what they are when they
// are pasted: where there is one, a line ends behind "&&" or ";", and what stands in quotes is never
// divided, so one longer than the line stays longer.
func fold(text string, cols int) []string {
	var lines []string
	words := wordsOf(text)
	line := ""
	for i := 0; i < len(words); {
		end, best := i, 0
		width := utf8.RuneCountInString(line)
		for end < len(words) && (width+utf8.RuneCountInString(strings.TrimRight(words[end], " ")) <= cols || end == i) {
			width += utf8.RuneCountInString(words[end])
			end++
			if last := strings.TrimRight(words[end-1], " "); strings.HasSuffix(last, "&&") || strings.HasSuffix(last, ";") {
				best = end
			}
		}
		if end < len(words) && best > i && best > (i+end)/2 {
			end = best
		}
		lines = append(lines, strings.TrimRight(line+strings.Join(words[i:end], ""), " "))
		line, i = indent, end
	}
	return lines
}

// wordsOf divides a text behind blanks, but neither within quotes nor before "&&": a line that begins
// with it is none that a shell takes.
func wordsOf(text string) []string {
	var list []string
	begin, quote := 0, rune(0)
	for i, r := range text {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
		case (r == '"' || r == '\'') && (i == 0 || strings.ContainsRune(" =(", rune(text[i-1]))) && strings.ContainsRune(text[i+1:], r):
			quote = r
		case r == ' ' && i > begin && strings.TrimSpace(text[begin:i]) != "" && !strings.HasPrefix(text[i+1:], "&& "):
			list, begin = append(list, text[begin:i+1]), i+1
		}
	}
	if begin < len(text) {
		list = append(list, text[begin:])
	}
	return list
}
