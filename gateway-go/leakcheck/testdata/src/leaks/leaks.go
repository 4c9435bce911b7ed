// Package leaks holds goroutines and channels that leak when they are run.
package leaks

import (
	"context"
	"errors"
	"time"
)

func work() {}

func loopForEver() {
	go func() { // want `goroutine without an exit path: a loop without return, break or panic at line 14`
		for {
			work()
		}
	}()
}

func breakOfTheSelectOnly(ctx context.Context, tick <-chan time.Time) {
	go func() { // want `goroutine without an exit path: a loop without return, break or panic at line 22`
		for {
			select {
			case <-ctx.Done():
				break
			case <-tick:
				work()
			}
		}
	}()
}

func returnOfAnInnerFunction() {
	go func() { // want `goroutine without an exit path`
		for {
			func() {
				return
			}()
		}
	}()
}

func poll() {
	for {
		time.Sleep(time.Second)
	}
}

type server struct{}

func (s *server) serve() {
	for {
		work()
	}
}

func named(s *server) {
	go poll()    // want `goroutine without an exit path`
	go s.serve() // want `goroutine without an exit path`
}

func blocks() {
	go func() { // want `goroutine without an exit path: an empty select`
		work()
		select {}
	}()
}

// The classic: who waited has left when the answer comes.
func timeout(ask func() int) (int, error) {
	answer := make(chan int)
	go func() { answer <- ask() }() // want `send without a partner: the only receiver may leave by another case`
	select {
	case a := <-answer:
		return a, nil
	case <-time.After(time.Second):
		return 0, errors.New("late")
	}
}

func nobodySends() int {
	c := make(chan int)
	go func() {
		work()
	}()
	return <-c // want `receive without a partner`
}

func nobodyReceives() {
	c := make(chan int)
	go func() {
		c <- 1 // want `send without a partner: nothing receives`
	}()
}

func rangeOverNothing() {
	c := make(chan int)
	for range c { // want `receive without a partner`
		work()
	}
}
