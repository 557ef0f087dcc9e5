// Package importer turns the configuration of nginx, and the keys that confd makes one of, into a configuration of Rota.
//
// What comes out always loads, and says in comments which line each part came from. What has no counterpart is never
// dropped in silence: every such thing is a [Note] with its place, the reason, and what to do. Where something that was
// closed in nginx cannot be closed the same way, it is not opened: such routes lead to a service without instances.
package importer

import (
	"cmp"
	"fmt"
	"slices"
)

// Result is what came of an import.
type Result struct {
	// YAML is a configuration that config.Parse takes.
	YAML []byte
	// Notes say what was not carried over, or not exactly, in the order of the files.
	Notes []Note
}

// Note is about one thing that differs.
type Note struct {
	File string // empty when it is about no file in particular
	Line int    // from 1, or 0
	// What is named, as in "ip_hash: no counterpart".
	What string
	// Remedy says what to do; empty when there is nothing to do.
	Remedy string
}

// String is the note as one line: file:line: what; remedy.
func (n Note) String() string {
	text := n.What
	if n.Remedy != "" {
		text += "; " + n.Remedy
	}
	switch {
	case n.File != "" && n.Line > 0:
		return fmt.Sprintf("%s:%d: %s", n.File, n.Line, text)
	case n.File != "":
		return n.File + ": " + text
	}
	return text
}

// notebook collects notes, each once.
type notebook struct{ notes []Note }

func (b *notebook) add(n Note) {
	if !slices.Contains(b.notes, n) {
		b.notes = append(b.notes, n)
	}
}

// sorted returns the notes by place; files in the order in which they first appear.
func (b *notebook) sorted() []Note {
	order := map[string]int{}
	for _, n := range b.notes {
		if _, ok := order[n.File]; !ok {
			order[n.File] = len(order)
		}
	}
	slices.SortStableFunc(b.notes, func(x, y Note) int {
		return cmp.Or(cmp.Compare(order[x.File], order[y.File]), cmp.Compare(x.Line, y.Line))
	})
	return b.notes
}
