package config

import (
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Error is one problem of a configuration: where it is, what it is, and what to do about it.
type Error struct {
	// File is what was read: a file's path, "routes/<name>" or "policies/<service>" for a value kept in etcd, or the
	// name of an environment variable.
	File string
	// Line and Column count from one, the column in characters. Both are zero where there is no position: a
	// variable, or a file that cannot be read.
	Line, Column int
	// Message says what is wrong, Hint what to write instead; the hint may be empty.
	Message, Hint string

	source string // the offending line, passwords hidden
	width  int    // characters to underline
	cause  error
}

// Error renders the position and the message, then the offending line with the place underlined, then the hint.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Position())
	b.WriteString(": ")
	b.WriteString(e.Message)
	if e.source != "" {
		line, column := window(e.source, e.Column)
		b.WriteString("\n    ")
		b.WriteString(line)
		b.WriteString("\n    ")
		b.WriteString(underline(line, column, e.width))
	}
	if e.Hint != "" {
		b.WriteString("\n  ")
		b.WriteString(e.Hint)
	}
	return b.String()
}

// Position is "file:line:column", or as much of it as is known.
func (e *Error) Position() string {
	if e.Line == 0 {
		return e.File
	}
	return fmt.Sprintf("%s:%d:%d", e.File, e.Line, e.Column)
}

// Unwrap returns the error behind it, such as [io/fs.ErrNotExist], or nil.
func (e *Error) Unwrap() error { return e.cause }

// Errors are all problems of one configuration, in the order of their lines. errors.As finds an [*Error] in it, and
// the whole list as Errors.
type Errors []*Error

// Error renders every problem, one after the other.
func (es Errors) Error() string {
	parts := make([]string, len(es))
	for i, e := range es {
		parts[i] = e.Error()
	}
	return strings.Join(parts, "\n")
}

// Unwrap returns the problems one by one.
func (es Errors) Unwrap() []error {
	out := make([]error, len(es))
	for i, e := range es {
		out[i] = e
	}
	return out
}

// maxErrors bounds the list: a file that is something else entirely would otherwise report every line.
const maxErrors = 100

// shownWidth is how much of a long line is shown: a JSON value is often a single line.
const shownWidth = 120

// window cuts a long line to the part around column and returns the column within that part.
func window(line string, column int) (string, int) {
	runes := []rune(line)
	if len(runes) <= shownWidth {
		return line, column
	}
	from := max(0, min(column-1-shownWidth/3, len(runes)-shownWidth))
	part := string(runes[from : from+shownWidth])
	if from > 0 {
		part, column = "…"+part, column+1
	}
	if from+shownWidth < len(runes) {
		part += "…"
	}
	return part, column - from
}

// underline is ^~~~ below line. Tabs before it are kept, so that it lines up wherever tab stops are.
func underline(line string, column, width int) string {
	var b strings.Builder
	n := 0
	for _, r := range line {
		if n++; n >= column {
			break
		}
		if r != '\t' {
			r = ' '
		}
		b.WriteRune(r)
	}
	b.WriteByte('^')
	if rest := utf8.RuneCountInString(line) - column; width > rest+1 {
		width = rest + 1
	}
	if width > 1 {
		b.WriteString(strings.Repeat("~", width-1))
	}
	return b.String()
}

var userinfo = regexp.MustCompile(`://[^/@\s"',]*@`)

var secret = regexp.MustCompile(`(?i)((?:pass[a-z]*|token)["']?\s*:\s*)("(?:[^"\\]|\\.)*"?|'[^']*'?|[^\s,}#][^,}#]*)`)

// hideSecrets replaces what looks like a password by as many asterisks: errors end in journals. A path to a password
// file is no secret and stays.
func hideSecrets(line string) string {
	line = userinfo.ReplaceAllStringFunc(line, func(s string) string {
		return "://" + strings.Repeat("*", utf8.RuneCountInString(s)-4) + "@"
	})
	return secret.ReplaceAllStringFunc(line, func(s string) string {
		m := secret.FindStringSubmatch(s)
		return m[1] + strings.Repeat("*", utf8.RuneCountInString(m[2]))
	})
}

// near returns the candidate that was probably meant, or "". The distance counts insertions, deletions, replacements
// and swaps of neighbours; a third of the length may differ. Failing that, one is the beginning of the other.
func near(word string, candidates []string) string {
	if len(word) > 40 {
		return ""
	}
	best, bestDistance := "", max(1, len(word)/3)+1
	for _, c := range candidates {
		if d := distance(strings.ToLower(word), c); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	for _, c := range candidates {
		if best == "" && len(word) > 2 && (strings.HasPrefix(word, c) || strings.HasPrefix(c, word)) {
			best = c
		}
	}
	return best
}

func distance(a, b string) int {
	before, last, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(last[j]+1, cur[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, last, cur = last, cur, before
	}
	return last[len(b)]
}

// didYouMean is the usual hint: the near candidate, else all of them.
func didYouMean(word string, candidates []string) string {
	if c := near(word, candidates); c != "" {
		return fmt.Sprintf("did you mean %q?", c)
	}
	return "known here: " + strings.Join(candidates, ", ")
}
