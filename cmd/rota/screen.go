package main

import (
	"bytes"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"golang.org/x/term"
)

// screen is how much room there is for a table, and whether it may have colours. Both are nothing when the output goes to a
// file or a pipe: then tables are whole and plain.
type screen struct {
	columns, rows int // zero is no bound
	colour        bool
}

func screenOf(w io.Writer) screen {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return screen{}
	}
	s := screen{colour: os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
	if columns, rows, err := term.GetSize(int(f.Fd())); err == nil {
		s.columns, s.rows = columns, rows
	}
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 {
		s.columns = n
	}
	return s
}

// table lays a table out, whose cells are separated by tabs, so that it fits: long lines are cut at the end.
func (s screen) table(w io.Writer, fill func(w io.Writer)) error {
	var laid bytes.Buffer
	tw := tabwriter.NewWriter(&laid, 0, 0, 2, ' ', 0)
	fill(tw)
	tw.Flush()
	var out bytes.Buffer
	for line := range strings.Lines(laid.String()) {
		out.WriteString(s.paint(s.cut(strings.TrimRight(line, " \n"))))
		out.WriteByte('\n')
	}
	_, err := w.Write(out.Bytes())
	return err
}

// cut shortens a line to the width.
func (s screen) cut(line string) string {
	if s.columns <= 0 || utf8.RuneCountInString(line) <= s.columns {
		return line
	}
	return string([]rune(line)[:s.columns-1]) + "…"
}

// The colours of states, and of the first line of a table.
var (
	statesPainted = map[string]string{
		"ready": "32", "starting": "36", "draining": "36", "suspect": "33", "ejected": "31", "down": "31", "replaced": "2",
	}
	stateCell = regexp.MustCompile(`(  )(ready|starting|draining|suspect|ejected|down|replaced)(  |$)`)
	heading   = regexp.MustCompile(`^[A-Z][A-Z0-9 /%]+…?$`)
)

// paint colours the first state of a line that is a cell of its own, and headings.
func (s screen) paint(line string) string {
	switch {
	case !s.colour:
		return line
	case heading.MatchString(line):
		return "\x1b[2m" + line + "\x1b[0m"
	}
	if at := stateCell.FindStringSubmatchIndex(line); at != nil {
		state := line[at[4]:at[5]]
		return line[:at[4]] + "\x1b[" + statesPainted[state] + "m" + state + "\x1b[0m" + line[at[5]:]
	}
	return line
}
