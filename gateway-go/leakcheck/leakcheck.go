// Package leakcheck finds goroutines that can never end, and channels whose other end
// is missing. It reports what it can show from one function alone: what leaves the
// function is left to tests (goleak).
package leakcheck

import (
	"go/ast"
	"go/token"
	"go/types"
	"slices"

	"golang.org/x/tools/go/analysis"
)

// Analyzer is run by lint over all packages.
var Analyzer = &analysis.Analyzer{
	Name: "leakcheck",
	Doc: "report goroutines without an exit path, and sends or receives without a partner\n\n" +
		"A goroutine leaks when its loop has no return, break or panic, or when it blocks in an empty select; " +
		"when it sends to a channel without room whose only receiver may have left by another case of its select; " +
		"and when a local channel that goes nowhere else is only sent to, or only received from.",
	Run: run,
}

func run(pass *analysis.Pass) (any, error) {
	bodies := map[types.Object]*ast.BlockStmt{}
	for _, file := range pass.Files {
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Body != nil {
				bodies[pass.TypesInfo.Defs[f.Name]] = f.Body
			}
		}
	}
	for _, file := range pass.Files {
		ast.Inspect(file, func(n ast.Node) bool {
			if g, ok := n.(*ast.GoStmt); ok {
				if body := started(pass, g, bodies); body != nil {
					if at, why := endless(body); why != "" {
						pass.Reportf(g.Pos(), "goroutine without an exit path: %s at line %d", why, pass.Fset.Position(at).Line)
					}
				}
			}
			return true
		})
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Body != nil {
				channels(pass, f.Body)
			}
		}
	}
	return nil, nil
}

// started is the body that a go statement runs, when it stands in this package.
func started(pass *analysis.Pass, g *ast.GoStmt, bodies map[types.Object]*ast.BlockStmt) *ast.BlockStmt {
	switch f := ast.Unparen(g.Call.Fun).(type) {
	case *ast.FuncLit:
		return f.Body
	case *ast.Ident:
		return bodies[pass.TypesInfo.Uses[f]]
	case *ast.SelectorExpr:
		return bodies[pass.TypesInfo.Uses[f.Sel]]
	}
	return nil
}

// endless finds, in a body itself, what never ends: a loop without a way out, or an
// empty select.
func endless(body *ast.BlockStmt) (at token.Pos, why string) {
	own(body, func(n ast.Node) {
		switch s := n.(type) {
		case *ast.ForStmt:
			if s.Cond == nil && !leaves(s) {
				at, why = s.Pos(), "a loop without return, break or panic"
			}
		case *ast.SelectStmt:
			if len(s.Body.List) == 0 {
				at, why = s.Pos(), "an empty select"
			}
		}
	})
	return at, why
}

// own visits the nodes of a body, but not those of functions written in it.
func own(root ast.Node, visit func(ast.Node)) {
	ast.Inspect(root, func(n ast.Node) bool {
		if _, inner := n.(*ast.FuncLit); inner && n != root {
			return false
		}
		if n != nil {
			visit(n)
		}
		return true
	})
}

// leaves says whether something in a loop can end it: a return, a goto, a break that
// is its own or has a label, or a call that does not come back.
func leaves(loop *ast.ForStmt) bool {
	out := false
	var walk func(n ast.Node, breaks bool)
	walk = func(n ast.Node, breaks bool) {
		ast.Inspect(n, func(x ast.Node) bool {
			switch s := x.(type) {
			case *ast.FuncLit:
				return false
			case *ast.ReturnStmt:
				out = true
			case *ast.BranchStmt:
				if s.Tok == token.GOTO || (s.Tok == token.BREAK && (breaks || s.Label != nil)) || (s.Tok == token.CONTINUE && s.Label != nil) {
					out = true
				}
			case *ast.CallExpr:
				out = out || final(s)
			case *ast.ForStmt, *ast.RangeStmt, *ast.SwitchStmt, *ast.TypeSwitchStmt, *ast.SelectStmt:
				if x != n { // a break in there is theirs
					walk(x, false)
					return false
				}
			}
			return true
		})
	}
	walk(loop.Body, true)
	return out
}

// finals are functions that do not come back, by package.
var finals = map[string][]string{"os": {"Exit"}, "runtime": {"Goexit"}, "log": {"Fatal", "Fatalf", "Fatalln"}}

// final says whether a call ends the goroutine or the process.
func final(c *ast.CallExpr) bool {
	switch f := ast.Unparen(c.Fun).(type) {
	case *ast.Ident:
		return f.Name == "panic"
	case *ast.SelectorExpr:
		if p, ok := f.X.(*ast.Ident); ok {
			return slices.Contains(finals[p.Name], f.Sel.Name)
		}
	}
	return false
}
