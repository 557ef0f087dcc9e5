// Package archtest holds the structure of the module as tests: which package may import what, what a package comment must
// be, and that the snippets in the documentation are those that are compiled and checked.
//
// The table is in archtest_test.go. A new package needs a line there, and a new import that the table does not allow needs
// an argument: see docs/ARCHITECTURE.md for the shape it protects. Test files may import what they like.
package archtest
