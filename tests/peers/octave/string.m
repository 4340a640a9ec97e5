function texts = string(value)
%STRING  Octave has no string arrays: a cell array of texts in their place.
if ischar(value)
  value = {value};
end
if ~iscellstr(value)
  error('stub:string', 'string takes a text or a cell array of texts');
end
texts = value;
end
