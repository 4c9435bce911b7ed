package link

import "time"

const (
	// paceDecay is what a frame's measure counts after the next one.
	paceDecay = 0.97
	// turnWanted is how long a frame that flows share may take, as far as it goes: what leaves in a
	// frame has had its turn, and who comes back just after it left waits for all of it.
	turnWanted = 5 * time.Millisecond
	// overheadWanted is how many times a frame's own cost its calls have to take, so that small
	// frames do not cost more than they give.
	overheadWanted = 4
	// aloneTimes a shared frame is one that a flow has for itself.
	aloneTimes = 4
	// tryMore: one shared frame of so many is twice as large, so that a model that learned to batch is noticed.
	tryMore = 64
)

// pace is what a lane's frames take: own + each * calls, by weighted least squares over the last
// ones, the newest counting most.
type pace struct {
	n, k, t, kk, kt float64 // sums of weights, calls, ns, calls², calls*ns
	loadedK         float64 // of frames that left calls waiting, or filled a batch
	loadedT         float64
	share           int // calls in a frame that flows share
	frames          int
}

// add counts a frame of so many calls.
func (p *pace) add(calls int, took time.Duration, loaded bool) {
	k, t := float64(calls), float64(took.Nanoseconds())
	p.n, p.k, p.t = p.n*paceDecay+1, p.k*paceDecay+k, p.t*paceDecay+t
	p.kk, p.kt = p.kk*paceDecay+k*k, p.kt*paceDecay+k*t
	if loaded || (p.loadedK > 0 && t < k*p.each()) { // one that was not loaded and faster shows that the pace is not so slow
		p.loadedK, p.loadedT = p.loadedK*paceDecay+k, p.loadedT*paceDecay+t
	}
	spread := p.kk/p.n - (p.k/p.n)*(p.k/p.n)
	if spread < 0.25 {
		return // all alike: that says nothing of one call
	}
	each := (p.kt/p.n - p.k/p.n*p.t/p.n) / spread
	own := max(0, p.t/p.n-each*p.k/p.n)
	wanted := readyCalls
	if each > 0 {
		wanted = int(min(max(overheadWanted*own/each, (float64(turnWanted.Nanoseconds())-own)/each, 1), readyCalls))
	}
	if p.share > 0 { // one odd frame must not open the door
		wanted = min(wanted, 2*p.share)
	}
	p.share = wanted
}

// each is ns for a call under load; 0 while it is not known.
func (p *pace) each() float64 {
	if p.loadedK == 0 {
		return 0
	}
	return p.loadedT / p.loadedK
}

// alone is how many calls the next frame of one flow takes: as many as there are, but of a slow
// model only some, for others may come, and what left cannot give its place to them.
func (p *pace) alone(most int) int {
	if p.share == 0 || p.share == readyCalls {
		return most
	}
	return min(most, aloneTimes*p.share)
}

// shared is how many calls the next frame takes that flows share.
func (p *pace) shared() int {
	if p.share == 0 {
		return readyCalls
	}
	if p.frames++; p.frames%tryMore == 0 {
		return min(2*p.share, readyCalls)
	}
	return p.share
}
