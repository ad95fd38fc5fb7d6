// Command libtailscale is the C library that tailscale.h describes.
//
// This package is the border alone: handles, strings, callbacks and the rule
// that no panic crosses. What a node does is in package engine, which knows
// nothing of C. It is built with -buildmode=c-archive.
package main

func main() {}
