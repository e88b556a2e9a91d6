// Command pod is the small program that stays with each pod.
package main

func main() {}
