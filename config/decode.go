package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
	"go.yaml.in/yaml/v4/plugin/loaderlimits"
)

// Bounds on what is read. Nothing an operator writes by hand comes near them.
const (
	maxFileBytes  = 1 << 20
	maxValueBytes = 64 << 10 // a value kept in etcd
	maxDepth      = 32
)

// source is one text being decoded: it remembers where every value stands, and collects the problems.
//
// Paths name values: "etcd.endpoints[0]", "services.cart.balance".
type source struct {
	file  string
	lines []string
	at    map[string]*yaml.Node // value by path
	keys  map[string]*yaml.Node // mapping key by path
	env   map[string]string     // environment variable that set a path
	// failed holds paths that could not be decoded; what is missing or zero there needs no second complaint.
	failed map[string]bool
	shown  map[int]string // lines as errors show them, passwords hidden
	errs   Errors
	more   int // problems beyond maxErrors
}

// lineBreaks are what YAML counts as the end of a line.
var lineBreaks = regexp.MustCompile("\r\n|[\r\n\u0085\u2028\u2029]")

func newSource(file string, data []byte) *source {
	return &source{
		file:  file,
		lines: lineBreaks.Split(string(data), -1),
		at:    map[string]*yaml.Node{},
		keys:  map[string]*yaml.Node{},
		env:   map[string]string{},

		failed: map[string]bool{},
		shown:  map[int]string{},
	}
}

// read parses data and decodes it into v, a pointer to a struct that holds the defaults.
func (s *source) read(data []byte, limit int, v any) {
	root := s.parse(data, limit)
	if root != nil {
		s.decode(root, reflect.ValueOf(v).Elem(), "")
	}
}

// parse returns the root value of the only document, or nil where there is none or it is broken.
func (s *source) parse(data []byte, limit int) *yaml.Node {
	if len(data) > limit {
		s.lines = nil
		s.add(0, 0, 0, fmt.Sprintf("%d bytes are more than the %d allowed", len(data), limit), "is this what was meant to be read?")
		return nil
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if !s.plainText(data) {
		return nil
	}
	// The size bounds the work: the tree is never expanded, for aliases are refused below.
	loader, err := yaml.NewLoader(bytes.NewReader(data), yaml.WithV4Defaults(),
		yaml.WithPlugin(loaderlimits.New(loaderlimits.DepthValue(maxDepth))))
	if err != nil {
		s.add(0, 0, 0, err.Error(), "")
		return nil
	}
	var doc, more yaml.Node
	switch err := loader.Load(&doc); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		s.broken(err)
		return nil
	}
	switch err := loader.Load(&more); {
	case errors.Is(err, io.EOF):
	case err != nil:
		s.broken(err)
		return nil
	default:
		s.add(more.Line, more.Column, 1, "a second document begins here", "keep one document: remove the --- line")
		return nil
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil
	}
	return doc.Content[0]
}

// plainText reports the first byte that no configuration holds. The YAML reader would refuse it without a position.
func (s *source) plainText(data []byte) bool {
	line, column := 1, 0
	for i, size := 0, 0; i < len(data); i += size {
		var r rune
		r, size = utf8.DecodeRune(data[i:])
		column++
		switch {
		case r == '\n':
			line, column = line+1, 0
		case r == utf8.RuneError && size == 1:
			s.lines = nil
			s.add(line, column, 1, "not UTF-8 text", "save the file as UTF-8")
			return false
		case r < ' ' && r != '\t' && r != '\r', r == 0x7f, r == 0xfffe, r == 0xffff:
			s.lines = nil
			s.add(line, column, 1, fmt.Sprintf("control character %#02x", r), "remove it")
			return false
		}
	}
	return true
}

// broken reports what the YAML parser could not read.
func (s *source) broken(err error) {
	message, hint := err.Error(), ""
	var line, column int
	if le, ok := errors.AsType[*yaml.LoadError](err); ok {
		message, line, column = le.Message, le.Mark.Line, le.Mark.Column
		if le.ContextMsg != "" {
			message += " " + le.ContextMsg
			if le.ContextMark.Line != 0 && le.ContextMark.Line != le.Mark.Line {
				hint = fmt.Sprintf("it began on line %d", le.ContextMark.Line)
			}
		}
	}
	if 0 < line && line <= len(s.lines) {
		text := []rune(s.lines[line-1])
		if 0 < column && column <= len(text) && text[column-1] == '\t' {
			message, hint = "a tab cannot indent YAML", "use spaces"
		}
	}
	switch {
	case strings.Contains(message, "mapping values are not allowed"):
		hint = "quote a value that contains a colon and a space, or check the indentation"
	case strings.Contains(message, "unknown anchor"):
		hint = "quote a value that begins with *"
	case hint == "":
		hint = "look for a missing quote, bracket or colon here and in the lines before, and at the indentation"
	}
	s.add(line, column, 1, message, hint)
}

// add records a problem at a position.
func (s *source) add(line, column, width int, message, hint string) {
	e := &Error{File: s.file, Line: line, Column: column, Message: message, Hint: hint, width: width}
	if 0 < line && line <= len(s.lines) && len(s.errs) < maxErrors {
		if _, ok := s.shown[line]; !ok {
			s.shown[line] = hideSecrets(s.lines[line-1])
		}
		e.source = s.shown[line]
	}
	s.record(e)
}

func (s *source) record(e *Error) {
	if len(s.errs) == maxErrors {
		s.more++
		return
	}
	s.errs = append(s.errs, e)
}

// err is nil without problems, else the list in the order of the lines.
func (s *source) err() error {
	if len(s.errs) == 0 {
		return nil
	}
	es := s.errs
	slices.SortStableFunc(es, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	if s.more > 0 {
		es = append(es, &Error{File: s.file, Message: fmt.Sprintf("%d more problems are not shown", s.more)})
	}
	return es
}

// addNode records a problem of n.
func (s *source) addNode(n *yaml.Node, message, hint string) {
	width := 1
	if n.Kind == yaml.ScalarNode {
		width = utf8.RuneCountInString(n.Value)
		if n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0 {
			width += 2
		}
	}
	s.add(n.Line, n.Column, width, message, hint)
}

// fail records why the value at path could not be decoded.
func (s *source) fail(n *yaml.Node, path, message, hint string) {
	s.failed[path] = true
	s.addNode(n, message, hint)
}

// report records a problem of the value at path: where it stands in the file, else the variable that set it, else the
// nearest thing around it that the file has.
func (s *source) report(path, message, hint string) {
	for p := path; ; p = parent(p) {
		if s.failed[p] {
			return
		}
		if p == "" {
			break
		}
	}
	for p := path; ; p = parent(p) {
		if name, ok := s.env[p]; ok {
			s.record(&Error{File: name, Message: message, Hint: hint})
			return
		}
		n := s.at[p]
		if p != path && s.keys[p] != nil {
			n = s.keys[p]
		}
		if n != nil {
			s.addNode(n, message, hint)
			return
		}
		if p == "" && s.file == "" {
			s.record(&Error{File: path, Message: message, Hint: hint})
			return
		}
		if p == "" {
			s.add(0, 0, 0, message, hint)
			return
		}
	}
}

// reportKey is report for the key itself.
func (s *source) reportKey(path, message, hint string) {
	if n := s.keys[path]; n != nil {
		s.addNode(n, message, hint)
		return
	}
	s.report(path, message, hint)
}

// parent of "a.b[0]" is "a.b", of "a.b" is "a", of "a" is "".
func parent(path string) string {
	if i := strings.LastIndexAny(path, ".["); i > 0 {
		return path[:i]
	}
	return ""
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	sizeType     = reflect.TypeFor[Size]()
)

// decode puts n into v. What is null or absent keeps the default that v holds; a list replaces the default list.
func (s *source) decode(n *yaml.Node, v reflect.Value, path string) {
	s.at[path] = n
	delete(s.env, path)
	switch {
	case n.Kind == yaml.AliasNode:
		s.fail(n, path, "aliases are not supported", "write the value out")
		return
	case n.Style&yaml.TaggedStyle != 0:
		s.fail(n, path, fmt.Sprintf("tag %s is not supported", n.Tag), "remove the tag")
		return
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null":
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		s.decode(n, v.Elem(), path)
	case reflect.Struct:
		s.decodeStruct(n, v, path)
	case reflect.Map:
		s.decodeMap(n, v, path)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			s.wrongType(n, path, "a list", listHint(n, v.Type().Elem()))
			return
		}
		list := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, item := range n.Content {
			s.decode(item, list.Index(i), fmt.Sprintf("%s[%d]", path, i))
		}
		v.Set(list)
	default:
		if n.Kind != yaml.ScalarNode {
			s.wrongType(n, path, wanted(v.Type()), "write one value, without brackets, braces or a list under it")
			return
		}
		if message, hint := setScalar(v, n.Value, n.ShortTag() != "!!str"); message != "" {
			s.fail(n, path, subject(path)+message, hint)
		}
	}
}

func (s *source) decodeStruct(n *yaml.Node, v reflect.Value, path string) {
	fields := fieldsOf(v.Type())
	if n.Kind != yaml.MappingNode {
		s.wrongType(n, path, "a mapping", fmt.Sprintf("write keys with values, as in %s: …", fields[0].key))
		return
	}
	s.eachKey(n, path, func(key, value *yaml.Node) {
		for _, f := range fields {
			if f.key == key.Value {
				s.decode(value, v.FieldByIndex(f.index), join(path, key.Value))
				return
			}
		}
		known := make([]string, len(fields))
		for i, f := range fields {
			known[i] = f.key
		}
		s.addNode(key, fmt.Sprintf("unknown key %q", clip(key.Value)), didYouMean(key.Value, known))
		if meant := near(key.Value, known); meant != "" {
			s.failed[join(path, meant)] = true
		}
	})
}

func (s *source) decodeMap(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		s.wrongType(n, path, "a mapping", "write names with values, as in name: …")
		return
	}
	out := reflect.MakeMapWithSize(v.Type(), len(n.Content)/2)
	s.eachKey(n, path, func(key, value *yaml.Node) {
		item := reflect.New(v.Type().Elem()).Elem()
		s.decode(value, item, join(path, key.Value))
		out.SetMapIndex(reflect.ValueOf(key.Value), item)
	})
	v.Set(out)
}

// eachKey calls do for every key that is a plain word and not a repetition.
func (s *source) eachKey(n *yaml.Node, path string, do func(key, value *yaml.Node)) {
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		switch {
		case key.Kind != yaml.ScalarNode || key.Style&yaml.TaggedStyle != 0:
			s.addNode(key, "a key must be a plain word", "quote a key or value that begins with one of { [ ? or !")
			continue
		case key.ShortTag() == "!!merge":
			s.addNode(key, "merge keys are not supported", "write the values out")
			continue
		}
		if line, twice := seen[key.Value]; twice {
			s.addNode(key, fmt.Sprintf("key %q is given twice", key.Value), fmt.Sprintf("first on line %d; keep one", line))
			continue
		}
		seen[key.Value] = key.Line
		s.keys[join(path, key.Value)] = key
		do(key, value)
	}
}

func (s *source) wrongType(n *yaml.Node, path, want, hint string) {
	got := "a single value"
	switch n.Kind {
	case yaml.MappingNode:
		got = "a mapping"
	case yaml.SequenceNode:
		got = "a list"
	}
	s.fail(n, path, fmt.Sprintf("%smust be %s, not %s", subject(path), want, got), hint)
}

// subject is how a message begins: with the path, except for the whole file.
func subject(path string) string {
	if path == "" {
		return "the configuration "
	}
	return path + " "
}

func wanted(t reflect.Type) string {
	switch {
	case t == durationType:
		return "a duration"
	case t == sizeType:
		return "a size"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Int:
		return "a whole number"
	}
	return "a string"
}

func listHint(n *yaml.Node, elem reflect.Type) string {
	if n.Kind == yaml.ScalarNode && elem.Kind() == reflect.String {
		return fmt.Sprintf("write [%s]", n.Value)
	}
	if n.Kind == yaml.MappingNode && elem.Kind() == reflect.Struct {
		return `begin the entry with "- "`
	}
	return ""
}

var (
	wholeNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]{0,17})$`)
	bareNumber  = regexp.MustCompile(`^[0-9]+(\.[0-9]+)?$`)
)

// setScalar sets v from text and returns what is wrong with it otherwise. plain tells a number or a bool from a
// quoted one; a string takes either, as it was written.
func setScalar(v reflect.Value, text string, plain bool) (message, hint string) {
	switch {
	case v.Type() == durationType:
		d, err := time.ParseDuration(text)
		switch {
		case text == "0":
		case err != nil && bareNumber.MatchString(text):
			return fmt.Sprintf("must have a unit, not %q", text), fmt.Sprintf("write %ss for seconds", text)
		case err != nil:
			return fmt.Sprintf("must be a duration, not %q", clip(text)), "write it like 15s, 250ms or 1m30s"
		case d < 0:
			return fmt.Sprintf("must not be negative, not %q", text), "write 0s or more"
		}
		v.SetInt(int64(d))
	case v.Type() == sizeType:
		n, message := parseSize(text)
		if message != "" {
			return fmt.Sprintf(message, clip(text)), "write it like 16KiB, 10MB, 2GiB or 4096"
		}
		v.SetInt(n)
	case v.Kind() == reflect.String:
		v.SetString(text)
	case v.Kind() == reflect.Bool:
		if text != "true" && text != "false" || !plain {
			return fmt.Sprintf("must be true or false, not %q", clip(text)), "write true or false, without quotes"
		}
		v.SetBool(text == "true")
	case v.Kind() == reflect.Int:
		n, err := strconv.Atoi(text)
		switch whole := err == nil && wholeNumber.MatchString(text); {
		case whole && !plain:
			return fmt.Sprintf("must be a whole number, not %q", clip(text)), "write it without quotes"
		case !whole:
			return fmt.Sprintf("must be a whole number, not %q", clip(text)), "write digits alone, as in 4"
		}
		v.SetInt(int64(n))
	default:
		panic("config: no way to set a " + v.Type().String())
	}
	return "", ""
}

var (
	sizes = map[string]int64{
		"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
	}
	sizeText = regexp.MustCompile(`^([0-9]+) ?(B|[KMGT]i?B)?$`)
)

// parseSize returns the bytes, or what is wrong with the text, as a format for it.
func parseSize(text string) (n int64, message string) {
	m := sizeText.FindStringSubmatch(text)
	if m == nil {
		if digits, negative := strings.CutPrefix(text, "-"); negative && sizeText.MatchString(digits) {
			return 0, "must not be negative, not %q"
		}
		return 0, "must be a size, not %q"
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if unit := sizes[m[2]]; err == nil && n <= math.MaxInt64/unit {
		return n * unit, ""
	}
	return 0, "must be less than 8EiB, not %q"
}

// clip shortens what a message quotes.
func clip(text string) string {
	if r := []rune(text); len(r) > 60 {
		return string(r[:60]) + "…"
	}
	return text
}

// field is one key of a mapping and the struct field it fills.
type field struct {
	key   string
	index []int
	typ   reflect.Type
}

// fieldsOf lists the keys of a struct in the order of its fields, those of inlined structs among them.
func fieldsOf(t reflect.Type) []field {
	var out []field
	for f := range t.Fields() {
		key, opts, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if opts == "inline" {
			for _, sub := range fieldsOf(f.Type) {
				sub.index = append([]int{f.Index[0]}, sub.index...)
				out = append(out, sub)
			}
			continue
		}
		if key != "" && key != "-" {
			out = append(out, field{key: key, index: f.Index, typ: f.Type})
		}
	}
	return out
}
