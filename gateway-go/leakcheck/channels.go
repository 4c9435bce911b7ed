package leakcheck

import (
	"go/ast"
	"go/constant"
	"go/token"
	"go/types"

	"golang.org/x/tools/go/analysis"
)

// channel is a local one, and what is done with it.
type channel struct {
	made             token.Pos
	room             bool
	sends, receives  []token.Pos
	aloneInGoroutine []token.Pos // sends of a goroutine that wait for nothing else
	certain          bool        // some receive waits for this channel only
	closed, escapes  bool
}

// channels judges the local channels of a function.
func channels(pass *analysis.Pass, body *ast.BlockStmt) {
	found := map[types.Object]*channel{}
	ast.Inspect(body, func(n ast.Node) bool {
		a, ok := n.(*ast.AssignStmt)
		if !ok || a.Tok != token.DEFINE || len(a.Lhs) != len(a.Rhs) {
			return true
		}
		for i, right := range a.Rhs {
			if name, is := a.Lhs[i].(*ast.Ident); is {
				if room, is := makes(pass, right); is {
					if object := pass.TypesInfo.Defs[name]; object != nil {
						found[object] = &channel{made: right.Pos(), room: room}
					}
				}
			}
		}
		return true
	})
	if len(found) == 0 {
		return
	}
	v := &visitor{pass: pass, found: found}
	v.visit(body, false, nil)
	for _, c := range found {
		report(pass, c)
	}
}

func report(pass *analysis.Pass, c *channel) {
	switch {
	case c.escapes:
	case len(c.receives) > 0 && len(c.sends) == 0 && !c.closed:
		pass.Reportf(c.receives[0], "receive without a partner: nothing sends to this channel or closes it")
	case len(c.sends) > 0 && len(c.receives) == 0 && !c.room:
		pass.Reportf(c.sends[0], "send without a partner: nothing receives from this channel")
	case len(c.aloneInGoroutine) > 0 && len(c.receives) > 0 && !c.certain && !c.room:
		pass.Reportf(c.aloneInGoroutine[0], "send without a partner: the only receiver may leave by another case of its select; give the channel room for one")
	}
}

// makes says whether an expression makes a channel, and whether it has room.
func makes(pass *analysis.Pass, e ast.Expr) (room, is bool) {
	call, ok := e.(*ast.CallExpr)
	if !ok || len(call.Args) == 0 {
		return false, false
	}
	if f, ok := call.Fun.(*ast.Ident); !ok || f.Name != "make" {
		return false, false
	}
	if _, ok := pass.TypesInfo.TypeOf(call.Args[0]).Underlying().(*types.Chan); !ok {
		return false, false
	}
	if len(call.Args) < 2 {
		return false, true
	}
	size := pass.TypesInfo.Types[call.Args[1]].Value
	return size == nil || constant.Sign(size) > 0, true
}

// visitor follows the uses of channels. A use that is none of those it knows lets the
// channel escape.
type visitor struct {
	pass  *analysis.Pass
	found map[types.Object]*channel
}

func (v *visitor) of(e ast.Expr) *channel {
	if name, ok := ast.Unparen(e).(*ast.Ident); ok {
		return v.found[v.pass.TypesInfo.Uses[name]]
	}
	return nil
}

// visit looks at a node; inGoroutine is whether a go statement runs it, choice the
// select whose case it is.
func (v *visitor) visit(root ast.Node, inGoroutine bool, choice *ast.SelectStmt) {
	ast.Inspect(root, func(n ast.Node) bool {
		switch s := n.(type) {
		case *ast.GoStmt:
			if f, ok := ast.Unparen(s.Call.Fun).(*ast.FuncLit); ok {
				for _, a := range s.Call.Args {
					v.visit(a, inGoroutine, nil)
				}
				v.visit(f.Body, true, nil)
				return false
			}
		case *ast.SelectStmt:
			for _, x := range s.Body.List {
				clause := x.(*ast.CommClause)
				if clause.Comm != nil {
					v.visit(clause.Comm, inGoroutine, s)
				}
				for _, y := range clause.Body {
					v.visit(y, inGoroutine, nil)
				}
			}
			return false
		case *ast.SendStmt:
			if c := v.of(s.Chan); c != nil {
				c.sends = append(c.sends, s.Pos())
				if inGoroutine && choice == nil {
					c.aloneInGoroutine = append(c.aloneInGoroutine, s.Pos())
				}
				v.visit(s.Value, inGoroutine, nil)
				return false
			}
		case *ast.UnaryExpr:
			if c := v.of(s.X); c != nil && s.Op == token.ARROW {
				v.received(c, s.Pos(), choice)
				return false
			}
		case *ast.RangeStmt:
			if c := v.of(s.X); c != nil {
				v.received(c, s.Pos(), nil)
				v.visit(s.Body, inGoroutine, nil)
				return false
			}
		case *ast.CallExpr:
			if f, ok := s.Fun.(*ast.Ident); ok && len(s.Args) == 1 {
				if c := v.of(s.Args[0]); c != nil && (f.Name == "close" || f.Name == "len" || f.Name == "cap") {
					c.closed = c.closed || f.Name == "close"
					return false
				}
			}
		case *ast.Ident:
			if c := v.found[v.pass.TypesInfo.Uses[s]]; c != nil {
				c.escapes = true
			}
		}
		return true
	})
}

func (v *visitor) received(c *channel, at token.Pos, choice *ast.SelectStmt) {
	c.receives = append(c.receives, at)
	if choice == nil || len(choice.Body.List) == 1 {
		c.certain = true
	}
}
