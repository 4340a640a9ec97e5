function made = table(varargin)
%TABLE  Octave has no tables: a struct in its place, of columns of one height.
place = find(cellfun(@(value) ischar(value) && strcmp(value, 'VariableNames'), varargin));
names = varargin{place + 1};
columns = varargin(1:place - 1);
heights = cellfun(@(column) size(column, 1), columns);
if numel(names) ~= numel(columns) || any(heights ~= heights(1))
  error('stub:table', 'columns of a table have names and one height');
end
made = cell2struct(columns, names, 2);
end
