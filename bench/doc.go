// Command bench measures Rota beside nginx, HAProxy and a C program that only copies bytes, in one run on one
// machine, and prints the ratios. See README.md for what is measured and how.
//
// It starts everything itself on loopback and stops it again; it imports nothing of the module but its own rig, and
// runs the binary that it builds.
package main
