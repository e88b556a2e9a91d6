// Package cli reads a command line: commands within commands, their flags and
// arguments, and the help about them. It is all functions of what it is given; it
// keeps nothing and runs nothing but the one action that was asked for.
//
// It is ours because the libraries print help by text/template, which calls
// methods by names that nobody knows before: the linker then keeps every method of
// every type, and the binary is an eighth larger.
//
// Flags may stand before and behind arguments, as kubectl's users write them
// (`get pods -A`), as -x, -x=value, -x value, and with two dashes; short ones may
// be written together (-it). What follows "--" is arguments. A flag that is not
// given has the value of its environment variable, if that is there, or else its
// default.
package cli
