// Package sound holds goroutines and channels that look alike and do not leak.
package sound

import (
	"context"
	"errors"
	"sync"
	"time"
)

func work() {}

func untilDone(ctx context.Context, tick <-chan time.Time) {
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick:
				work()
			}
		}
	}()
}

func labelled(done <-chan struct{}) {
	go func() {
	loop:
		for {
			select {
			case <-done:
				break loop
			default:
				work()
			}
		}
	}()
}

func condition(n int) {
	go func() {
		for n > 0 {
			n--
		}
		for {
			if n++; n > 10 {
				break
			}
		}
	}()
}

func untilClosed(c <-chan int) {
	go func() {
		for range c {
			work()
		}
	}()
}

func panics() {
	go func() {
		for {
			panic("no way on")
		}
	}()
}

// There is room for the answer of who comes late.
func timeout(ask func() int) (int, error) {
	answer := make(chan int, 1)
	go func() { answer <- ask() }()
	select {
	case a := <-answer:
		return a, nil
	case <-time.After(time.Second):
		return 0, errors.New("late")
	}
}

// Who sends may leave too.
func both(ctx context.Context, ask func() int) int {
	answer := make(chan int)
	go func() {
		select {
		case answer <- ask():
		case <-ctx.Done():
		}
	}()
	select {
	case a := <-answer:
		return a
	case <-ctx.Done():
		return 0
	}
}

func closing() {
	done := make(chan struct{})
	go func() { work(); close(done) }()
	<-done
}

func escapes(register func(chan int)) int {
	c := make(chan int)
	register(c)
	return <-c
}

func alias() chan int {
	c := make(chan int)
	d := c
	go func() { d <- 1 }()
	return c
}

func pipeline(items []int) int {
	c, sum := make(chan int), 0
	var all sync.WaitGroup
	for _, i := range items {
		all.Add(1)
		go func() { defer all.Done(); c <- i }()
	}
	go func() { all.Wait(); close(c) }()
	for i := range c {
		sum += i
	}
	return sum
}

// Not a goroutine: the process is to stay here.
func main() {
	for {
		work()
	}
}
