package importer

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// directive is one statement of nginx's grammar: words ended by ";" or by a block.
type directive struct {
	name  string
	args  []string
	block []*directive // of those with braces; their number may be zero
	open  bool         // it has a block
	file  string
	line  int
}

// text is the directive as it would be written in short.
func (d *directive) text() string {
	t := strings.Join(append([]string{d.name}, d.args...), " ")
	if len(t) > 80 {
		t = strings.ToValidUTF8(t[:80], "") + "…"
	}
	return t
}

func (d *directive) arg(i int) string {
	if i >= 0 && i < len(d.args) {
		return d.args[i]
	}
	return ""
}

// SyntaxError is a place that nginx would not read either.
type SyntaxError struct {
	File    string
	Line    int
	Message string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Message) }

// The bounds of what is read.
const (
	maxDepth    = 64       // of blocks, and of files that include each other
	maxFile     = 16 << 20 // bytes
	maxIncludes = 4096     // files
)

// word is a token: a word, or one of ; { } alone.
type word struct {
	text  string
	punct byte // ';', '{', '}' or 0
	line  int
}

// lexer splits text into words as nginx does: white space between them, # to the end of a line where a word could begin,
// quotes around whole words, a backslash before what is not meant.
type lexer struct {
	file string
	data string
	at   int
	line int
}

func (l *lexer) fail(line int, format string, args ...any) error {
	return &SyntaxError{l.file, line, fmt.Sprintf(format, args...)}
}

// next returns the next word; ok is false at the end.
func (l *lexer) next() (w word, ok bool, err error) {
	for ; l.at < len(l.data); l.at++ {
		switch c := l.data[l.at]; {
		case c == '\n':
			l.line++
		case c == ' ' || c == '\t' || c == '\r':
		case c == '#':
			end := strings.IndexByte(l.data[l.at:], '\n')
			if end < 0 {
				l.at = len(l.data)
				return word{}, false, nil
			}
			l.at += end - 1
		case c == ';' || c == '{' || c == '}':
			l.at++
			return word{punct: c, line: l.line}, true, nil
		case c == '"' || c == '\'':
			return l.quoted(c)
		default:
			return l.bare()
		}
	}
	return word{}, false, nil
}

// quoted reads a word in quotes; behind it has to come something that ends a word.
func (l *lexer) quoted(quote byte) (word, bool, error) {
	w := word{line: l.line}
	var b strings.Builder
	for l.at++; l.at < len(l.data); l.at++ {
		switch c := l.data[l.at]; {
		case c == '\\' && l.at+1 < len(l.data):
			l.escape(&b)
		case c == quote:
			l.at++
			if l.at < len(l.data) && !strings.ContainsRune(" \t\r\n;{)", rune(l.data[l.at])) {
				return w, false, l.fail(l.line, "%q directly behind a quoted word; put a space between them", l.data[l.at:l.at+1])
			}
			w.text = b.String()
			return w, true, nil
		default:
			if c == '\n' {
				l.line++
			}
			b.WriteByte(c)
		}
	}
	return w, false, l.fail(w.line, "a quote is never closed; add %c", quote)
}

// bare reads a word without quotes. A brace after a dollar belongs to a variable.
func (l *lexer) bare() (word, bool, error) {
	w := word{line: l.line}
	var b strings.Builder
	for ; l.at < len(l.data); l.at++ {
		c := l.data[l.at]
		switch {
		case c == '\\' && l.at+1 < len(l.data):
			l.escape(&b)
			continue
		case c == '{' && strings.HasSuffix(b.String(), "$"):
		case strings.IndexByte(" \t\r\n;{", c) >= 0:
			w.text = b.String()
			return w, true, nil
		}
		b.WriteByte(c)
	}
	w.text = b.String()
	return w, true, nil
}

// escape reads a backslash and what follows it. What needs none keeps it, which is why regular expressions work.
func (l *lexer) escape(b *strings.Builder) {
	l.at++
	switch c := l.data[l.at]; c {
	case '"', '\'', '\\':
		b.WriteByte(c)
	case 't':
		b.WriteByte('\t')
	case 'r':
		b.WriteByte('\r')
	case 'n':
		b.WriteByte('\n')
	default:
		if c == '\n' {
			l.line++
		}
		b.WriteByte('\\')
		b.WriteByte(c)
	}
}

// reader reads a file with all that it includes.
type reader struct {
	*notebook
	base  string // directory that includes are relative to, as nginx has it: that of the first file
	files []string
	count int
}

// readNginx reads a file of nginx's configuration.
func readNginx(file string, notes *notebook) ([]*directive, error) {
	r := &reader{notebook: notes, base: filepath.Dir(file)}
	return r.file(file)
}

func (r *reader) file(file string) ([]*directive, error) {
	if slices.Contains(r.files, file) {
		return nil, fmt.Errorf("%s includes itself; remove that line", file)
	}
	if r.count++; r.count > maxIncludes || len(r.files) > maxDepth {
		return nil, fmt.Errorf("%s: too many files are included, more than %d, or %d deep", file, maxIncludes, maxDepth)
	}
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("%s is not a file of at most %d MiB; name the nginx.conf", file, maxFile>>20)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r.files = append(r.files, file)
	defer func() { r.files = r.files[:len(r.files)-1] }()
	return r.text(file, string(data))
}

// text reads what stands in a file.
func (r *reader) text(file, data string) ([]*directive, error) {
	l := &lexer{file: file, data: strings.TrimPrefix(data, "\ufeff"), line: 1}
	list, err := r.block(l, 0, 0)
	if err != nil {
		return nil, err
	}
	return list, nil
}

// block reads directives until the brace that closes what was opened at line; line 0 is the file itself.
func (r *reader) block(l *lexer, line, depth int) ([]*directive, error) {
	if depth > maxDepth {
		return nil, l.fail(line, "blocks stand more than %d deep in each other", maxDepth)
	}
	var list []*directive
	var d *directive
	for {
		w, ok, err := l.next()
		switch {
		case err != nil:
			return nil, err
		case !ok && d != nil:
			return nil, l.fail(d.line, "%q is not ended; add a semicolon", d.name)
		case !ok && line > 0:
			return nil, l.fail(line, "this block is never closed; add }")
		case !ok:
			return list, nil
		case w.punct == 0 && d == nil:
			d = &directive{name: w.text, file: l.file, line: w.line}
		case w.punct == 0:
			d.args = append(d.args, w.text)
		case d == nil && w.punct == '}' && line > 0:
			return list, nil
		case d == nil:
			return nil, l.fail(w.line, "unexpected %q; remove it, or see what is missing before it", w.punct)
		case w.punct == '}':
			return nil, l.fail(d.line, "%q is not ended; add a semicolon", d.name)
		case w.punct == '{':
			d.open = true
			if strings.HasSuffix(d.name, "_by_lua_block") {
				if err := l.skipBlock(w.line); err != nil {
					return nil, err
				}
			} else if d.block, err = r.block(l, w.line, depth+1); err != nil {
				return nil, err
			}
			list, d = append(list, d), nil
		case d.name == "include":
			more, err := r.include(d)
			if err != nil {
				return nil, err
			}
			list, d = append(list, more...), nil
		default:
			list, d = append(list, d), nil
		}
	}
}

// skipBlock passes over a block that is written in another language.
func (l *lexer) skipBlock(line int) error {
	for depth := 1; l.at < len(l.data); l.at++ {
		switch l.data[l.at] {
		case '\n':
			l.line++
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				l.at++
				return nil
			}
		}
	}
	return l.fail(line, "this block is never closed; add }")
}

// include reads the files that a pattern names, in the order of their names.
func (r *reader) include(d *directive) ([]*directive, error) {
	if len(d.args) != 1 {
		return nil, &SyntaxError{d.file, d.line, "include takes one name"}
	}
	pattern := d.args[0]
	if !filepath.IsAbs(pattern) {
		pattern = filepath.Join(r.base, pattern)
	}
	names := []string{pattern}
	if strings.ContainsAny(pattern, "*?[") {
		var err error
		if names, err = filepath.Glob(pattern); err != nil {
			return nil, &SyntaxError{d.file, d.line, fmt.Sprintf("%q is not a pattern of file names", d.args[0])}
		}
	}
	var list []*directive
	for _, name := range names {
		more, err := r.file(name)
		if os.IsNotExist(err) || os.IsPermission(err) {
			r.add(Note{d.file, d.line, fmt.Sprintf("include %s: %s cannot be read", d.args[0], name),
				"run the import where nginx runs, or copy the file there; mime.types and the like need not be"})
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, more...)
	}
	return list, nil
}
