package registry

import (
	"fmt"
	"unicode"
	"unicode/utf8"
)

// invalid returns an error that wraps ErrInvalid. Its text begins with "invalid"; what comes from outside is quoted
// by [quote], so that a hostile value cannot forge log lines or repaint a terminal.
func invalid(format string, args ...any) error {
	return fmt.Errorf("%w "+format, append([]any{ErrInvalid}, args...)...)
}

// quote shows s as a short ASCII literal.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		return fmt.Sprintf("%+q… (%d bytes)", s[:most], len(s))
	}
	return fmt.Sprintf("%+q", s)
}

// checkText refuses what cannot be shown on one line of a terminal or a page: bytes that are not UTF-8, control
// characters, line separators, and the characters that reorder the text around them.
func checkText(what, s string, most int) error {
	if len(s) > most {
		return invalid("%s: %d bytes; write at most %d", what, len(s), most)
	}
	if !utf8.ValidString(s) {
		return invalid("%s %s: not UTF-8", what, quote(s))
	}
	for _, r := range s {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || r == '\ufeff' || unicode.Is(unicode.Bidi_Control, r) {
			return invalid("%s %s: leave out the control character %U", what, quote(s), r)
		}
	}
	return nil
}
