package engine

import (
	"fmt"
	"regexp"
	"strings"

	"cel.dev/cel-go/common/operators"
)

// CEL speaks to those who embed it: it names overloads and declarations. An author of a workflow reads about operators and fields instead. What is
// recognised here is only reworded, so a message that a later version of CEL writes in another way is shown as it is.
var wordings = []struct {
	said  *regexp.Regexp
	plain func(said []string) string
}{
	{regexp.MustCompile(`^found no matching overload for '([^']+)' applied to '(?:\w+\.)?\((.*)\)'$`), func(said []string) string {
		if said[1] == operators.Conditional {
			return "? : takes true or false, and two alternatives of one type; they are " + said[2] + ", and dyn(...) around one of them gives it any type"
		}
		text := symbol(said[1]) + " does not take " + strings.ReplaceAll(said[2], ", ", " and ")
		if said[1] == operators.Equals || said[1] == operators.NotEquals {
			text += "; what is written as two types is never equal"
		}
		return text
	}},
	{regexp.MustCompile(`^undeclared reference to '([^']+)'`), func(said []string) string {
		return fmt.Sprintf("expressions have no function %q", said[1])
	}},
	{regexp.MustCompile(`^no such overload: (.+)$`), func(said []string) string {
		return symbol(said[1]) + " does not take values of these types"
	}},
	{regexp.MustCompile(`^no such overload$`), func([]string) string {
		return "an operator got a value of a type that it does not take; !, && and || take true or false"
	}},
	{regexp.MustCompile(`^no such key: (.+)$`), func(said []string) string {
		return fmt.Sprintf("there is no field %q", said[1])
	}},
	{regexp.MustCompile(`^index out of bounds: (.+)$`), func(said []string) string { return "the list has no item " + said[1] }},
	{regexp.MustCompile(`^invalid int literal$`), func([]string) string { return "a whole number that does not fit 64 bits" }},
	{regexp.MustCompile(`^invalid matches argument$`), func([]string) string { return "not a regular expression of the RE2 syntax" }},
	{regexp.MustCompile(`^type conversion error from '(\w+)' to '(\w+)'$`), func(said []string) string {
		return fmt.Sprintf("this %s cannot be converted to %s", said[1], said[2])
	}},
	{regexp.MustCompile(`^Syntax error: .*'<EOF>'`), func([]string) string { return "the expression ends before it is complete" }},
	// A parser goes on to list all that it would have taken, which is about its grammar.
	{regexp.MustCompile(`^Syntax error: (?:mismatched input|extraneous input|no viable alternative at input|missing .+ at|token recognition error at:) '(.+?)'(?: expecting .*)?$`), func(said []string) string {
		return fmt.Sprintf("the expression is not right at '%s': something there is missing or too much", strings.TrimSpace(said[1]))
	}},
}

// reworded returns a message of CEL in the words of this format.
func reworded(message string) string {
	for _, w := range wordings {
		if said := w.said.FindStringSubmatch(message); said != nil {
			return w.plain(said)
		}
	}
	return message
}

// symbol is how an author writes a function of CEL, such as "_+_".
func symbol(function string) string {
	if s, ok := operators.FindReverse(function); ok && s != "" {
		return s
	}
	return function
}
